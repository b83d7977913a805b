"""The compiled decode step: made from `step.cpp` by the machine's own compiler the first time, and kept in the cache.

It is optional. Where there is no compiler, or the result does not load, decoding goes on with torch's operations, several
times slower, and `Unavailable` says why.
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

SOURCE = Path(__file__).with_name("step.cpp")
COMPILE_LIMIT_S = 120.0


@dataclass(frozen=True)
class Unavailable:
    """Why there is no compiled step."""

    reason: str


@functools.cache
def load_library() -> ctypes.CDLL | Unavailable:
    """The compiled step, which takes a few seconds the first time on a machine. Several processes may do it at once."""
    if not environment.native_step_wanted():
        return Unavailable("FIRSTLIGHT_NATIVE is 0")
    compiler = environment.cxx_compiler()
    if compiler is None:
        return Unavailable("no C++ compiler was found (install g++)")
    try:
        return _load(compiler, environment.cache_dir() / "native")
    except subprocess.TimeoutExpired:
        return Unavailable(f"{compiler} took longer than {COMPILE_LIMIT_S:.0f} s")
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip().splitlines()
        return Unavailable(f"{compiler} cannot build it: {words[0] if words else error}")
    except OSError as error:
        return Unavailable(f"the compiled step cannot be kept or loaded: {error}")


def _load(compiler: str, folder: Path) -> ctypes.CDLL:
    path = _compiled(compiler, folder)
    # The threads are torch's: its OpenMP is in this process already, and the library asks for none of its own.
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        # Damaged, perhaps: once more from the source, and if that does not load either, it cannot be here.
        path.unlink()
        return ctypes.CDLL(str(_compiled(compiler, folder)))


def _flags(compiler: str) -> list[str]:
    # Sums must keep their order, so nothing of -ffast-math; a * b + c may become one operation.
    arch = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    openmp = (
        ["-Xclang", "-fopenmp"] if platform.system() == "Darwin" and "clang" in Path(compiler).name else ["-fopenmp"]
    )
    return ["-std=c++17", "-O3", arch, "-fno-math-errno", "-ffp-contract=fast", "-fPIC", *openmp]


def _compiled(compiler: str, folder: Path) -> Path:
    """Path of the library for this source, compiler and processor."""
    flags = _flags(compiler)
    version = _run([compiler, "--version"])
    words = [SOURCE.read_text(encoding="utf-8"), compiler, version, *flags, environment.cpu_features()]
    path = folder / f"step-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:24]}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _is_ours(folder) and _is_ours(path):
        return path
    # What others may write to is not loaded: then it is made anew, for this process alone.
    target = path if _is_ours(folder) else Path(tempfile.mkdtemp(prefix="firstlight-native-")) / path.name
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        made, library = Path(work) / "step.o", Path(work) / path.name
        # Compiled and linked apart: linking with -fopenmp would bring a second OpenMP, whose threads fight torch's.
        _run([compiler, *flags, "-c", str(SOURCE), "-o", str(made)])
        loose = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        _run([compiler, "-shared", *loose, str(made), "-o", str(library)])
        library.chmod(0o700)
        os.replace(library, target)
    return target


def _is_ours(path: Path) -> bool:
    """Whether it exists and nobody else may change it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    return done.stdout
