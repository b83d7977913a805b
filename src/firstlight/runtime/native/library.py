"""Native code: made from a C++ file by the machine's own compiler the first time, and kept in the cache.

It is optional. Where there is no compiler, or the result does not load, torch's operations do the same, slower, and
`Unavailable` says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from firstlight.runtime import environment

HEADERS = Path(__file__).parent
"""Folder of what the sources share."""

COMPILE_LIMIT_S = 120.0


@dataclass(frozen=True)
class Unavailable:
    """Why there is no native code."""

    reason: str


def why_not(source: Path) -> str | None:
    """Why there is no library of ``source`` on this machine; None where there is. May compile, once on a machine."""
    found = load_library(source)
    return found.reason if isinstance(found, Unavailable) else None


def library_of(source: Path) -> ctypes.CDLL:
    """The library of a source of which `why_not` says nothing. Raises RuntimeError where it does."""
    found = load_library(source)
    if isinstance(found, Unavailable):
        raise RuntimeError(f"there is no native code of {source.name}: {found.reason}")
    return found


@functools.cache
def load_library(source: Path) -> ctypes.CDLL | Unavailable:
    """What ``source`` compiles to, which takes a few seconds the first time on a machine. Several processes may do it at once."""
    if not environment.native_code_wanted():
        return Unavailable("FIRSTLIGHT_NATIVE is 0")
    if platform.system() != "Linux":
        return Unavailable(f"native code is made on Linux, not on {platform.system()}")
    compiler = environment.cxx_compiler()
    if compiler is None:
        return Unavailable("no C++ compiler was found (install g++)")
    try:
        version = _run([compiler, "--version"])
        if "clang" in version:
            return Unavailable(f"{compiler} is clang, whose OpenMP is not the one that torch brings: g++ is needed")
        return _load(source, compiler, version, environment.own_cache_dir() / "native")
    except subprocess.TimeoutExpired:
        return Unavailable(f"{compiler} took longer than {COMPILE_LIMIT_S:.0f} s")
    except subprocess.CalledProcessError as error:
        words = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.split("\n")
        return Unavailable(f"{compiler} cannot build it: {words[0].strip() or error}")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        return Unavailable(f"what it makes cannot be kept or loaded: {error}")


def _load(source: Path, compiler: str, version: str, folder: Path) -> ctypes.CDLL:
    """Load what is kept in ``folder`` for this source, compiler and processor, or make it first."""
    flags = _flags()
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(HEADERS.glob("*.h")))]
    words = [*texts, compiler, version, *flags, environment.cpu_features()]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:24]}.so"
    if not _can_keep(folder):
        # For this process alone: once it is loaded it needs no name.
        with tempfile.TemporaryDirectory(prefix="firstlight-native-") as private:
            return _loaded(_made(source, Path(private) / name, compiler, flags))
    path = folder / name
    if _is_ours(path):
        try:
            return _loaded(path)
        except OSError:
            # Damaged, perhaps: made once more, and if that does not load either, it cannot be here.
            path.unlink()
    return _loaded(_made(source, path, compiler, flags))


def _loaded(path: Path) -> ctypes.CDLL:
    # The threads are torch's: its OpenMP is in this process already, and the library asks for none of its own.
    return ctypes.CDLL(str(path))


def _flags() -> list[str]:
    # Sums must keep their order, so nothing of -ffast-math; a * b + c may become one operation.
    arch = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return ["-std=c++17", "-O3", arch, "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-fopenmp"]


def _made(source: Path, path: Path, compiler: str, flags: list[str]) -> Path:
    """Compile, and put the whole result in place."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        compiled, library = Path(work) / "code.o", Path(work) / path.name
        # Compiled and linked apart: linking with -fopenmp would bring a second OpenMP, whose threads fight torch's.
        _run([compiler, *flags, f"-I{HEADERS}", "-c", str(source), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(library)])
        library.chmod(0o700)
        os.replace(library, path)
    return path


def _can_keep(folder: Path) -> bool:
    """Whether there is such a folder that this user, and nobody else, may write to."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _is_ours(folder) and os.access(folder, os.W_OK)
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether it exists and nobody else may change it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=COMPILE_LIMIT_S
    )
    return done.stdout
