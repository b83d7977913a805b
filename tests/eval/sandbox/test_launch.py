"""Claims of eval/sandbox/launch.py that can be read off a running program: each step holds without the others."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from firstlight.eval.sandbox import launch
from firstlight.eval.sandbox.program import Limits, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the steps are Linux's")

STATUS = "print(open('/proc/self/status').read())"
AMPLE = Limits(wall_s=120)


def status_of(without: tuple[str, ...] = ("landlock",)) -> dict[str, str]:
    """Fields of /proc/self/status as a program sees them; Landlock would hide the file."""
    result = run_program(STATUS, limits=AMPLE, without=without)
    return dict(re.findall(r"^(\w+):\s*(.*)$", result.stdout, re.MULTILINE))


def test_a_program_has_no_capability_and_never_gets_one() -> None:
    found = status_of()
    assert [found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == ["0" * 16] * 4
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_the_system_calls_are_those_of_the_kernel_headers() -> None:
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    for name, (_, arm64) in {**launch.FORBIDDEN, **launch.OWN_PROCESS_ONLY}.items():
        if name in numbers and arm64 is not None:
            assert int(numbers[name]) == arm64, name
    x86 = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if x86.exists():
        numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", x86.read_text()))
        for name, (x86_64, _) in {**launch.FORBIDDEN, **launch.OWN_PROCESS_ONLY}.items():
            assert int(numbers.get(name, x86_64)) == x86_64, name
        assert (int(numbers["clone"]), int(numbers["clone3"])) == (launch.CLONE[0], launch.CLONE3)


def test_sockets_are_refused_by_the_filter_and_the_network_is_empty_without_it() -> None:
    probe = "import socket\ntry:\n  s = socket.socket(); s.settimeout(1); s.connect(('127.0.0.1', {port}))\nexcept OSError as e: print(e.errno)"
    import errno
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        code = probe.format(port=server.getsockname()[1])
        assert run_program(code, limits=AMPLE, without=("landlock", "namespaces")).stdout == f"{errno.EPERM}\n"
        if os.getuid() == 0:
            return
        result = run_program(code, limits=AMPLE, without=("landlock", "seccomp"))
        if "namespaces" in result.isolation:
            assert int(result.stdout) in (errno.ENETUNREACH, errno.ECONNREFUSED)


def test_a_second_filter_or_namespace_cannot_be_made() -> None:
    calls = (
        "unshare(0x10000000)",
        "mount(b'tmpfs', b'.', b'tmpfs', 0, None)",
        "ptrace(0, 0, 0, 0)",
        "syscall(435, 0, 0)",
    )
    code = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    code += "".join(f"print(libc.{call}, ctypes.get_errno())\n" for call in calls)
    # EPERM; ENOSYS for clone3.
    assert run_program(code, limits=AMPLE).stdout == "-1 1\n-1 1\n-1 1\n-1 38\n"


def test_landlock_holds_alone() -> None:
    result = run_program("open('/etc/passwd')", limits=AMPLE, without=("namespaces",))
    if "landlock" not in result.isolation:
        pytest.skip("this kernel has no Landlock")
    assert result.stderr.endswith("PermissionError: [Errno 13] Permission denied: '/etc/passwd'\n")


def test_a_limit_is_never_raised() -> None:
    import subprocess

    code = (
        "import resource as r, sys; sys.path.insert(0, sys.argv[1]); import launch\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (50, 60)); launch.limit('NOFILE', 1000); print(r.getrlimit(r.RLIMIT_NOFILE))\n"
        "launch.limit('CORE', 0); print(r.getrlimit(r.RLIMIT_CORE))"
    )
    folder = str(Path(launch.__file__).parent)
    done = subprocess.run([sys.executable, "-S", "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "(60, 60)\n(0, 0)\n"
