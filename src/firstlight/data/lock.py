"""One process at a time makes a file; the others wait, and say so."""

from __future__ import annotations

from collections.abc import Iterator
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
