"""Folders and files that are whole or not there: written under a hidden name beside the target, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from firstlight.errors import CheckpointError, ConfigError


def check_folder(directory: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raise ConfigError unless a folder can be written there. is_ours: whether a folder is such as may be replaced."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is a file", hint="name a folder that is not there yet")
    if not any(directory.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{directory} is not empty", hint="name another folder, or replace this one with --overwrite")
    if not is_ours(directory):
        raise ConfigError(
            f"--overwrite would delete {directory}, which is not an exported model",
            hint="name another folder: only one that firstlight export wrote is replaced",
        )


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``directory`` at the end, and is gone after an error.

    Raises CheckpointError where the disk refuses; what was in ``directory`` before is then untouched.
    """
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.tmp-"))
        temporary.chmod(0o755)  # mkdtemp makes it readable by its owner alone
        yield temporary
        for path in temporary.iterdir():
            _to_disk(path)
        replaced = None
        if directory.exists():
            replaced = temporary.with_name(f"{temporary.name}-replaced")
            directory.rename(replaced)
        temporary.rename(directory)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _refused(directory, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def check_file(path: Path, *, overwrite: bool) -> None:
    """Raise ConfigError unless a file can be written there."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", hint="name a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there already", hint="name another file, or replace this one with --overwrite")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name ``path`` at the end, and is gone after an error. Errors as `new_folder`."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _refused(path: Path, error: Exception) -> CheckpointError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return CheckpointError(
        f"{path} cannot be written: {reason}", hint="nothing was left there; see the disk's free space"
    )
