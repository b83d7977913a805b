"""Claims about the compiled step's making: once for a source, compiler and processor; what others may change is never
loaded; whatever is in the way is said, and is no error.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from firstlight.infer.native.step import SOURCE
from firstlight.runtime import environment
from firstlight.runtime.native import library
from firstlight.runtime.native.library import Unavailable, load_library


@pytest.fixture
def real() -> ctypes.CDLL:
    found = load_library(SOURCE)
    if isinstance(found, Unavailable):
        pytest.skip(f"no native step: {found.reason}")
    return found


@pytest.fixture
def compiler(tmp_path: Path, real: ctypes.CDLL) -> Path:
    """Does what a compiler is asked for, without its time: the result is the library of this machine. Counts its work."""
    script = tmp_path / "g++"
    script.write_text(
        f"""#!{sys.executable}
import pathlib, shutil, sys
if "--version" in sys.argv:
    print("stand-in 1.0")
else:
    out = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
    with open({str(tmp_path / "work")!r}, "a") as log:
        log.write(" ".join(sys.argv[1:]) + "\\n")
    if "-shared" in sys.argv:
        shutil.copy({real._name!r}, out)
    else:
        out.write_text("object")
"""
    )
    script.chmod(0o755)
    return script


def num_links(compiler: Path) -> int:
    log = compiler.with_name("work")
    return sum("-shared" in line for line in log.read_text().splitlines()) if log.exists() else 0


def test_it_is_made_once(compiler: Path, tmp_path: Path) -> None:
    for _ in range(3):
        library._load(SOURCE, str(compiler), "1.0", tmp_path / "cache")
    assert num_links(compiler) == 1
    (made,) = (tmp_path / "cache").iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_another_processor_or_source_gets_its_own(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    library._load(SOURCE, str(compiler), "1.0", folder)
    monkeypatch.setattr(environment, "cpu_features", lambda: "flags: none")
    library._load(SOURCE, str(compiler), "1.0", folder)
    source = tmp_path / "step.cpp"
    source.write_text("// another")
    library._load(source, str(compiler), "1.0", folder)
    assert num_links(compiler) == len(list(folder.iterdir())) == 3


def made_and_spoiled(compiler: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's file, made but never loaded, with something else in it."""
    with monkeypatch.context() as patch:
        patch.setattr(library, "_loaded", lambda path: path)
        path = library._load(SOURCE, str(compiler), "1.0", folder)
    assert isinstance(path, Path)
    path.write_bytes(b"not what was made")
    path.chmod(0o700)
    return path


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_may_change_is_not_loaded(
    what: str, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    made = made_and_spoiled(compiler, folder, monkeypatch)
    (made if what == "file" else folder).chmod(0o777)
    found = library._load(SOURCE, str(compiler), "1.0", folder)
    assert num_links(compiler) == 2
    assert hasattr(found, "step_float32")
    if what == "folder":
        assert Path(found._name).parent != folder, "made where nobody else can write"
        assert not Path(found._name).exists(), "and nothing is left of it"
    else:
        assert made.stat().st_mode & 0o777 == 0o700


def test_a_damaged_one_is_made_anew(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_and_spoiled(compiler, tmp_path / "cache", monkeypatch)
    assert hasattr(library._load(SOURCE, str(compiler), "1.0", tmp_path / "cache"), "step_float32")
    assert num_links(compiler) == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\n[ $# = 1 ] && exit 0\necho 'In file:' >&2\necho 'step.cpp:1: fatal error: omp.h: No such file' >&2\nexit 1\n", "cannot build it: step.cpp:1: fatal"),
        ("#!/bin/sh\nexit 3\n", "cannot build it"),
        ("#!/bin/sh\nfor last; do :; done\ntest $# = 1 || echo nothing > \"$last\"\n", "cannot be kept or loaded"),
        ("#!/bin/sh\nsleep 60\n", "took longer than"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_a_reason(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text(script)
    broken.chmod(0o755)
    monkeypatch.setattr(library, "COMPILE_LIMIT_S", 2.0)
    monkeypatch.setattr(environment, "cxx_compiler", lambda: str(broken))
    monkeypatch.setattr(environment, "own_cache_dir", lambda: tmp_path / "cache")
    found = load_library.__wrapped__(SOURCE)
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_other_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cxx_compiler", lambda: None)
    assert load_library.__wrapped__(SOURCE) == Unavailable("no C++ compiler was found (install g++)")
    clang = tmp_path / "clang++"
    clang.write_text("#!/bin/sh\necho Debian clang version 14.0.6\n")
    clang.chmod(0o755)
    monkeypatch.setattr(environment, "cxx_compiler", lambda: str(clang))
    assert "g++ is needed" in str(load_library.__wrapped__(SOURCE))
    with monkeypatch.context() as patch:
        patch.setattr(library.platform, "system", lambda: "Windows")
        assert load_library.__wrapped__(SOURCE) == Unavailable("native code is made on Linux, not on Windows")
    monkeypatch.setenv("FIRSTLIGHT_NATIVE", "0")
    assert load_library.__wrapped__(SOURCE) == Unavailable("FIRSTLIGHT_NATIVE is 0")


def test_without_a_place_to_keep_it_it_is_made_for_the_process_alone(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = library._load(SOURCE, str(compiler), "1.0", tmp_path / "file" / "native")
    assert hasattr(found, "step_float32")
    assert not Path(found._name).exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="the process's libraries are listed on Linux only")
def test_there_is_one_openmp_in_the_process(real: ctypes.CDLL) -> None:
    # Two would have two sets of threads, which wait for work on the same cores.
    with open("/proc/self/maps") as file:
        paths = {line.split()[-1] for line in file if "libgomp" in line or "libomp" in line or "libiomp" in line}
    assert len(paths) == 1, paths
