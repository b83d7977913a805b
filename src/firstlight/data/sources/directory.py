"""A directory of the user's own files, or one such file, as a source.

All folders below it are searched. Files and folders whose name starts with ``.`` are left alone; files of other kinds
(a README, an index) are not read but listed. Shards are ordered by their name relative to the directory, numbers by value.
"""

from __future__ import annotations

import os
from pathlib import Path

from firstlight.data.sources.base import Progress, Source, SourceShard, natural_key
from firstlight.data.sources.reading import KINDS_IN_WORDS, check_file, suffix_of
from firstlight.errors import DataError


def open_directory(path: Path, *, name: str | None = None, progress: Progress | None = None) -> Source:
    """Source of all readable files under a directory, or of one file. Every file's outside is checked here.

    name: what messages and records call the source; the path where None.
    Raises DataError where there is nothing to read, or a file is damaged or has no column of texts.
    """
    name = name or str(path)
    if not path.exists():
        raise DataError(f"{path} does not exist", hint="give a directory or a file with text in it")
    if path.is_file():
        if suffix_of(path.name) is None:
            raise DataError(
                f"{path} is not a kind of file that can be read", hint=f"what can be read is {KINDS_IN_WORDS}"
            )
        found, ignored = {path.name: path}, []
    else:
        found, ignored = _walk(path)
    if not found:
        beside = f"; it holds {_some(ignored)}" if ignored else ", and it is empty"
        raise DataError(f"{path} has no text to read{beside}", hint=f"what is looked for is {KINDS_IN_WORDS}")
    names = sorted(found, key=natural_key)
    for i, shard_name in enumerate(names):
        check_file(found[shard_name], shard_name)
        if progress is not None:
            progress("checking files", i + 1, len(names))
    shards = tuple(SourceShard(each, found[each], found[each].stat().st_size) for each in names)
    return Source(name, shards, ignored=tuple(sorted(ignored, key=natural_key)))


def _walk(directory: Path) -> tuple[dict[str, Path], list[str]]:
    """Readable files by their relative name, and the names of the others."""
    found: dict[str, Path] = {}
    ignored: list[str] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    # Data folders are often links to a larger disk, so links are followed; a folder that was seen ends a loop of them.
    for folder, subfolders, files in os.walk(directory, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            ignored.append(
                Path(folder).relative_to(directory).as_posix() + "/ (a link to a folder that is read already)"
            )
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
        for each in files:
            file = Path(folder, each)
            relative = file.relative_to(directory).as_posix()
            if each.startswith("."):
                continue
            if suffix_of(each) is None or not file.is_file():
                ignored.append(relative)
            else:
                found[relative] = file
    return found, ignored


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(sorted(names, key=natural_key)[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
