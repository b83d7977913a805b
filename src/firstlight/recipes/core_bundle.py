"""The bundle of CORE's tasks for all processes: given as a folder, or fetched once into the cache."""

from __future__ import annotations

import shutil
import stat
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from firstlight.data.download import RemoteFile, download
from firstlight.data.lock import one_at_a_time
from firstlight.errors import ConfigError, DataError
from firstlight.eval.core.bundle import Bundle, read_bundle
from firstlight.eval.core.originals import URL
from firstlight.recipes.sharing import together
from firstlight.runtime.channel import Channel

Fetch = Callable[[RemoteFile, Path], Path]

FOLDER = "eval_bundle"
LARGEST_BUNDLE_BYTES = 2 * 2**30
"""Of the unpacked files; the published ones have far less."""


def obtain_bundle(
    path: Path | None,
    *,
    control: Channel,
    cache_dir: Path,
    report: Callable[[str], None] | None = None,
    fetch: Fetch = download,
) -> Bundle:
    """The bundle in the folder ``path``, or the published one from the cache, fetched first where it is not there.

    Collective: a failure on one process is raised on all. fetch: downloads a file, for tests.
    Raises ConfigError for a folder that is not there, DataError for a download or a bundle that failed.
    """

    def work(note: Callable[[str], None]) -> Bundle:
        if path is not None:
            if not path.is_dir():
                raise ConfigError(
                    f"--bundle {path} is not a folder", hint="it holds core.yaml, eval_meta_data.csv and eval_data/"
                )
            return read_bundle(path)
        note("the tasks of CORE, fetched where they are not in the cache")
        return read_bundle(_cached(cache_dir, fetch))

    bundle = together(control, work, report=report)
    hashes = control.gather_texts(bundle.content_hash)
    if len(set(hashes)) > 1:
        other = next(rank for rank, each in enumerate(hashes) if each != hashes[0])
        raise DataError(
            f"rank {other} has another bundle of tasks than rank 0: content hash {hashes[other][:16]}, not {hashes[0][:16]}",
            hint="copy one bundle to all machines, or delete the caches' eval_bundle",
        )
    return bundle


def _cached(cache_dir: Path, fetch: Fetch) -> Path:
    folder, archive = cache_dir / FOLDER, cache_dir / f"{FOLDER}.zip"
    if (folder / "core.yaml").is_file():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(cache_dir / f"{FOLDER}.lock"):
            if not (folder / "core.yaml").is_file():
                try:
                    fetch(RemoteFile(URL, "the bundle of CORE's tasks"), archive)
                except DataError as error:
                    raise DataError(
                        error.what, hint=f"{error.hint}\n  or give a bundle that you have with --bundle DIR".lstrip()
                    ) from error
                unpack(archive, folder)
                archive.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"the bundle of CORE's tasks cannot be written to {cache_dir}: {error.strerror or error}",
            hint="set FIRSTLIGHT_CACHE to a folder with 300 MB of space",
        ) from error
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the bundle in ``archive`` so that ``folder`` is whole or not there.

    Only files that a bundle has are written, and only inside the folder. An archive that is damaged is deleted.
    Raises DataError for one that is damaged, too large, holds a link or a path that leaves the folder, or no bundle.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [(entry, _place(entry)) for entry in file.infolist() if not entry.is_dir()]
            if sum(entry.file_size for entry, _ in entries) > LARGEST_BUNDLE_BYTES:
                raise DataError(f"{archive} unpacks to more than 2 GiB, which no bundle of CORE's tasks does")
            for entry, place in entries:
                if place is None:
                    continue
                target = temporary.joinpath(*place.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        if not (temporary / "core.yaml").is_file():
            raise DataError(f"{archive} holds no core.yaml: it is not the bundle of CORE's tasks")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    # RuntimeError: an entry that asks for a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink(missing_ok=True)
        raise DataError(
            f"{archive} is damaged ({error}) and was deleted", hint="the same command downloads it again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place(entry: zipfile.ZipInfo) -> PurePosixPath | None:
    """Where an entry belongs inside the bundle's folder; None for what a bundle does not need."""
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
        raise DataError(f"the bundle's archive holds {entry.filename!r}, which leaves its folder")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"the bundle's archive holds the link {entry.filename!r}")
    parts = path.parts[1:] if path.parts[:1] == (FOLDER,) else path.parts
    if parts in (("core.yaml",), ("eval_meta_data.csv",)) or (parts[:1] == ("eval_data",) and len(parts) > 1):
        return PurePosixPath(*parts)
    return None
