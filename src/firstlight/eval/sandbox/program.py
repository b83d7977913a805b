"""Runs a program that a model wrote, in a process that can do little and ends when its limits are reached.

Every program gets a fresh interpreter (`launch`), an empty environment, a folder of its own that is gone afterwards, and
nothing of ours. What is in force depends on the system, so each `Result` names it. This keeps the mistakes of a model away
from the machine. It is not a wall against somebody who attacks the kernel itself: for that use a virtual machine.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from firstlight.errors import ConfigError

Status = Literal["ok", "error", "crashed", "timeout", "memory", "output"]

LAUNCHER = Path(__file__).with_name("launch.py")
START_S = 60.0
"""A machine under load may take long to start an interpreter; the program's own clock begins when it does."""
LOOK_EVERY_S = 0.05
EXIT_GRACE_S = 1.0
"""CPU seconds above the wall clock's limit, so that the clock speaks first."""


@dataclass(frozen=True)
class Limits:
    """What a program may use. wall_s: seconds from its start. cpu_s: of processor time, whole ones; None is a little more
    than wall_s. On a busy machine a program gets less of a second, so a score needs a generous wall_s. memory_bytes: address space, the interpreter's included.

    output_bytes: of standard output and standard error together. file_bytes: of one file. disk_bytes: of all its files
    (where it gets a disk of its own). max_threads: its main one included; it never gets a second process.
    """

    wall_s: float = 5.0
    cpu_s: int | None = None
    memory_bytes: int = 512 * 2**20
    output_bytes: int = 256 * 2**10
    file_bytes: int = 2**20
    disk_bytes: int = 8 * 2**20
    open_files: int = 64
    max_threads: int = 16


@dataclass(frozen=True)
class Result:
    """How a program ended. limit_hit: in words, None where none was. isolation: what was in force, see `launch`.

    status: ``ok`` (exit code 0), ``error`` (another one: an exception), ``crashed`` (ended by a signal of its own making),
    or the limit that ended it: ``timeout``, ``memory``, ``output``.
    """

    status: Status
    stdout: str
    stderr: str
    elapsed_s: float
    limit_hit: str | None
    isolation: tuple[str, ...]
    missing: tuple[str, ...] = ()


def run_program(code: str, *, stdin: str = "", limits: Limits | None = None, without: Sequence[str] = ()) -> Result:
    """Run Python code and say how it ended. It sees the standard library only.

    stdin: what it can read. without: steps of `launch` to leave out (namespaces, landlock, seccomp), see `find_isolation`.
    Raises ConfigError where such a process cannot be started here at all.
    """
    limits = limits or Limits()
    if os.name != "posix":
        raise ConfigError(
            "programs of a model are not run on this system: it has no limits for processes",
            hint="leave out the task humaneval, or use Linux, WSL or macOS",
        )
    with tempfile.TemporaryDirectory(prefix="firstlight-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))
        (folder / "work").mkdir()
        (folder / "program.py").write_bytes(code.encode("utf-8", "surrogatepass"))
        (folder / "stdin").write_bytes(stdin.encode("utf-8", "surrogatepass"))
        return _Running(folder, limits, without).result()


def find_isolation() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(steps to leave out, notices): what this machine can do, found by running a program that does nothing.

    Landlock can be too strict for an interpreter in an unusual place; it is then left out, and the notice says so.
    Raises ConfigError where not even a plain program runs.
    """
    result = run_program("print('ok')", limits=Limits(wall_s=START_S))
    notices = []
    without: tuple[str, ...] = ()
    if result.stdout != "ok\n" and "landlock" in result.isolation:
        notices.append("programs may read files: the interpreter does not start under Landlock here")
        without = ("landlock",)
        result = run_program("print('ok')", limits=Limits(wall_s=START_S), without=without)
    if result.stdout != "ok\n":
        raise ConfigError(
            f"an empty program does not run in the sandbox: {result.status}, {result.stderr.strip()[-300:]!r}",
            hint="leave out the task humaneval",
        )
    return without, (*notices, *weaknesses(result))


def weaknesses(result: Result) -> list[str]:
    """What is not kept from a program on this system, a sentence each; the words of `docs/sandbox.md`."""
    has = set(result.isolation)
    found = []
    if "landlock" not in has:
        found.append("a program can read and write whatever you can")
    if not has & {"namespaces", "seccomp"}:
        found.append("a program can use the network")
    if "seccomp" not in has:
        found.append("a program can send signals to your processes")
    if "disk" not in has:
        found.append("a program's files are limited one by one, not together")
    if "rlimit_as" not in has:
        found.append("a program's memory is not limited")
    return found


class _Running:
    """One program: its process, and what is read of it."""

    def __init__(self, folder: Path, limits: Limits, without: Sequence[str]) -> None:
        self._limits = limits
        self._cpu_s = limits.cpu_s or math.ceil(limits.wall_s + EXIT_GRACE_S)
        self._used_cpu_s = 0.0
        self._report = bytearray()
        self._out: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        executable = os.path.realpath(sys.executable)
        report_r, report_w = os.pipe()
        spec = {
            # No site packages, no user's folder; a fixed hash seed, so that sets have one order and scores repeat.
            "argv": [executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(folder / "program.py")],
            "env": {"PYTHONHASHSEED": "0"},
            "work": str(folder / "work"),
            "readable": [
                sys.base_prefix,
                sys.base_exec_prefix,
                os.path.dirname(executable),
                str(folder / "program.py"),
            ],
            "disk_bytes": limits.disk_bytes,
            "max_threads": limits.max_threads,
            "report_fd": report_w,
            "without": list(without),
            "rlimits": {
                "CPU": self._cpu_s,
                "AS": limits.memory_bytes,
                "FSIZE": limits.file_bytes,
                "NOFILE": limits.open_files,
                "CORE": 0,
            },
        }
        with (folder / "stdin").open("rb") as stdin:
            self._process = subprocess.Popen(
                [executable, "-I", "-S", "-B", str(LAUNCHER), json.dumps(spec)],
                stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd=folder, pass_fds=(report_w,),
                start_new_session=True,
            )  # fmt: skip
        os.close(report_w)
        self._report_r = report_r
        self._started_s: float | None = None

    def result(self) -> Result:
        """Watch it to its end."""
        cut: Status | None = None
        try:
            cut = self._watch()
        finally:
            self._end()
        elapsed_s = time.monotonic() - (self._started_s or time.monotonic())
        lines = [json.loads(line) for line in bytes(self._report).split(b"\n") if line]
        stdout, stderr = (bytes(part).decode("utf-8", "replace") for part in self._out.values())
        failed = [line["failed"] for line in lines if "failed" in line]
        if not lines or failed:
            raise ConfigError(
                f"the sandbox cannot start a program: {failed[0] if failed else stderr.strip()[-300:] or 'no answer'}",
                hint="leave out the task humaneval; `docs/sandbox.md` says what the sandbox needs",
            )
        status, limit_hit = self._judge(cut, stderr)
        return Result(
            status, stdout, stderr, elapsed_s, limit_hit, tuple(lines[0]["in_force"]), tuple(lines[0]["missing"])
        )

    def _watch(self) -> Status | None:
        """Read until the end, or until a limit is reached: which one."""
        began_s = time.monotonic()
        pipes = {self._process.stdout: "stdout", self._process.stderr: "stderr", self._report_r: "report"}
        with selectors.DefaultSelector() as selector:
            for pipe, name in pipes.items():
                assert pipe is not None
                os.set_blocking(pipe if isinstance(pipe, int) else pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, name)
            while True:
                is_over = self._has_ended()
                for key, _ in selector.select(0 if is_over else LOOK_EVERY_S):
                    if not self._read(key.fd, str(key.data)):
                        selector.unregister(key.fileobj)
                if self._num_bytes() > self._limits.output_bytes:
                    return "output"
                if is_over:
                    # What was in the pipes at its end; who else holds them open is not waited for.
                    for key in list(selector.get_map().values()):
                        while self._num_bytes() <= self._limits.output_bytes and self._read(key.fd, str(key.data)) == 1:
                            pass
                    return "output" if self._num_bytes() > self._limits.output_bytes else None
                if not selector.get_map():
                    time.sleep(LOOK_EVERY_S / 5)
                now_s = time.monotonic()
                if self._started_s is None and self._report:
                    self._started_s = now_s
                if self._started_s is None and now_s - began_s > START_S:
                    return "timeout"
                if self._started_s is not None and now_s - self._started_s > self._limits.wall_s:
                    return "timeout"

    def _read(self, descriptor: int, name: str) -> int:
        """Take what a pipe holds: 1 where something came, 0 at its end. Nothing there at the moment is -1."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return -1
        (self._report if name == "report" else self._out[name]).extend(data)
        return 1 if data else 0

    def _num_bytes(self) -> int:
        return sum(map(len, self._out.values()))

    def _has_ended(self) -> bool:
        # Not reaped before its group is killed, so that the group's number cannot be another's by then.
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is not None

    def _end(self) -> None:
        """Kill whatever is left of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._used_cpu_s = usage.ru_utime + usage.ru_stime
        with suppress(ProcessLookupError, PermissionError):
            for _ in range(100):
                os.killpg(self._process.pid, signal.SIGKILL)
                time.sleep(0.01)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        os.close(self._report_r)

    def _judge(self, cut: Status | None, stderr: str) -> tuple[Status, str | None]:
        limits, code = self._limits, self._process.returncode
        if cut == "timeout":
            return "timeout", f"{limits.wall_s:g} s of time"
        if cut == "output":
            return "output", f"{limits.output_bytes:,} bytes of output"
        last = stderr.strip().rpartition("\n")[2]
        # A program that ignores SIGXCPU is killed a second later.
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and self._used_cpu_s > self._cpu_s):
            return "timeout", f"{self._cpu_s:g} s of processor time"
        if code == -signal.SIGKILL or (code != 0 and re.match(r"(MemoryError|.*\[Errno 12\])", last)):
            return "memory", f"{limits.memory_bytes:,} bytes of memory"
        if code < 0:
            return "crashed", f"signal {signal.Signals(-code).name}"
        if code and re.search(r"\[Errno 27\]", last):
            return "error", f"{limits.file_bytes:,} bytes in a file"
        if code and re.search(r"\[Errno 28\]", last):
            return "error", f"{limits.disk_bytes:,} bytes of disk"
        return ("ok" if code == 0 else "error"), None


def describe(result: Result) -> dict[str, Any]:
    """What an evaluation keeps of a result."""
    return {"status": result.status, "limit_hit": result.limit_hit, "elapsed_s": round(result.elapsed_s, 4)}
