"""One process at a time makes a file or folder; the others wait, and say so; what is made is put in place in one move."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.data.sources.base import Progress

SAY_AFTER_S = 2.0


@contextmanager
def one_at_a_time(path: Path, *, progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock file ``path``. The system frees it when its holder ends, in whatever way.

    Raises OSError where the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    waited = 0
    while True:
        try:
            lock.acquire(timeout=SAY_AFTER_S)
            break
        except Timeout:
            waited += 1
            if progress is not None:
                progress(f"waiting for another process (it holds {path})", waited, None)
    try:
        yield
    finally:
        lock.release()


def put_in_place(temporary: Path, folder: Path, *, is_whole: Callable[[Path], bool]) -> None:
    """Rename a folder that is made; where a damaged one is in the way, move it aside; where another process was first, use
    its work. For file systems that ignore locks. Raises OSError where neither can be.
    """
    if folder.exists() and not is_whole(folder):
        aside = folder.with_name(f".{folder.name}.damaged.{uuid.uuid4().hex[:8]}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise
