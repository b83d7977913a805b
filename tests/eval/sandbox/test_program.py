"""Claims of eval/sandbox/program.py: whatever a program does, it ends within 2 s of its limit, says how, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from firstlight.errors import ConfigError
from firstlight.eval.sandbox.program import Limits, Result, find_isolation, run_program, weaknesses

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are run on POSIX systems only")

SHORT = Limits(wall_s=0.5)
AMPLE = Limits(wall_s=120)
"""For programs that end by themselves, on however busy a machine."""
OVERDUE_S = 10.0
"""On a quiet machine it is a tenth of a second; this only tells that it does not hang."""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs what only Linux has")


def run(code: str, limits: Limits = AMPLE, **more) -> Result:
    result = run_program(code, limits=limits, **more)
    assert result.elapsed_s < limits.wall_s + OVERDUE_S
    return result


def test_a_program_runs_and_its_output_comes_back() -> None:
    result = run("import sys, math\nprint(input() * 2, math.comb(5, 2))\nprint('é', file=sys.stderr)", stdin="ab\n")
    assert (result.status, result.stdout, result.stderr, result.limit_hit) == ("ok", "abab 10\n", "é\n", None)


def test_an_exception_is_an_error_with_its_traceback() -> None:
    result = run("assert 1 == 2, 'no'")
    assert (result.status, result.limit_hit) == ("error", None)
    assert result.stderr.endswith("AssertionError: no\n")
    assert run("x = (").status == "error"
    assert run("\0").status == "error"
    assert run("print('\ud800')").status == "error"


def test_two_runs_are_the_same_run() -> None:
    code = "print({'a', 'b', 'c', 'd', 'e'}, hash('x'))"
    assert run(code).stdout == run(code).stdout


LOOPS = {
    "endless loop": "while True: pass",
    "sleeping": "import time; time.sleep(1000)",
    "silent": "import os, time\nos.close(1); os.close(2)\ntime.sleep(1000)",
    "ignoring every signal": (
        "import signal, time\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
        "while True: time.sleep(1)"
    ),
    "endless work in C": "10 ** 10 ** 9",
}


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS.keys())
def test_what_does_not_end_is_ended(code: str) -> None:
    result = run(code, SHORT)
    assert (result.status, result.limit_hit) == ("timeout", "0.5 s of time")


@ON_LINUX
@pytest.mark.parametrize(
    "code", ["x = []\nwhile True: x.append(bytearray(10**7))", "bytearray(10**10)", "'a' * 10**10"]
)
def test_memory_is_limited(code: str) -> None:
    result = run(code, Limits(wall_s=120, memory_bytes=256 * 2**20))
    assert (result.status, result.limit_hit) == ("memory", "268,435,456 bytes of memory")


@ON_LINUX
@pytest.mark.parametrize("first", ["", "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"])
def test_processor_time_has_its_own_limit(first: str) -> None:
    result = run(f"{first}while True: pass", Limits(wall_s=60, cpu_s=1))
    assert (result.status, result.limit_hit) == ("timeout", "1 s of processor time")


def test_deep_recursion_is_an_error_or_meets_a_limit() -> None:
    result = run("def f(): return f()\nf()")
    assert result.status == "error"
    assert "RecursionError" in result.stderr
    endless = run("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()", SHORT)
    assert endless.status in ("memory", "timeout", "crashed")


def test_a_crash_names_its_signal() -> None:
    result = run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (result.status, result.limit_hit) == ("crashed", "signal SIGSEGV")


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_output_is_read_up_to_its_limit(where: str) -> None:
    limits = Limits(wall_s=120, output_bytes=10_000)
    result = run(f"import sys\nwhile True: sys.{where}.write('x' * 1000)", limits)
    assert (result.status, result.limit_hit) == ("output", "10,000 bytes of output")
    assert 10_000 < len(result.stdout) + len(result.stderr) < 10_000 + 2 * 65_536
    just_enough = run("print('x' * 9_999)", limits)
    assert just_enough.status == "ok"
    # Written at once and over before anybody looks.
    assert run("print('x' * 10_000)", limits).status == "output"


FORK_BOMB = "import os\nwhile True: os.fork()"


@ON_LINUX
@pytest.mark.parametrize(
    "code",
    [FORK_BOMB, "import subprocess; subprocess.run(['/bin/true'])", "import os; os.system('true') and 1 / 0",
     "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(1000)",
     "import multiprocessing as m\np = m.Process(target=print)\np.start()"],
    ids=["fork bomb", "subprocess", "shell", "daemon", "multiprocessing"],
)  # fmt: skip
def test_there_is_no_second_process(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = run(code)
    assert result.status == "error"
    assert _processes_of(tmp_path) == []


@ON_LINUX
def test_threads_are_few() -> None:
    code = "import threading, time\nfor n in range(1000):\n  threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n  print(n)"
    result = run(code, Limits(wall_s=120, max_threads=4))
    if "namespaces" not in result.isolation:
        pytest.skip("threads are counted together with those of other programs here")
    assert result.status == "error"
    assert result.stderr.endswith("can't start new thread\n")
    if os.getuid() != 0:
        assert result.stdout == "0\n1\n2\n"


@ON_LINUX
def test_a_program_writes_in_its_own_folder_only(tmp_path: Path) -> None:
    if "landlock" not in run("").isolation:
        pytest.skip("this kernel has no Landlock")
    target = tmp_path / "x"
    for path in (str(target), "/tmp/firstlight-test-evil", "/dev/shm/firstlight-test-evil", "/var/tmp/x"):
        result = run(f"open({path!r}, 'w')")
        assert result.status == "error", path
        assert "Error" in result.stderr, path
    victim = tmp_path / "victim"
    victim.write_text("here")
    for act in ("os.remove", "os.truncate", "os.rmdir", "os.chmod"):
        run(f"import os; {act}({str(victim)!r}, *([0] if {act!r} in ('os.truncate',) else []))")
    assert victim.read_text() == "here"
    assert not target.exists()
    inside = run(
        "import os\nopen('a', 'w').write('x')\nos.mkdir('b')\nprint(sorted(os.listdir('.')), open('a').read())"
    )
    assert inside.stdout == "['a', 'b'] x\n"


@ON_LINUX
def test_a_program_reads_no_file_of_ours(tmp_path: Path) -> None:
    if "landlock" not in run("").isolation:
        pytest.skip("this kernel has no Landlock")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for path in (
        secret,
        Path("/etc/passwd"),
        Path("/proc/self/environ"),
        Path(f"/proc/{os.getpid()}/environ"),
        Path(__file__),
    ):
        result = run(f"print(open({str(path)!r}).read())")
        assert (result.status, result.stdout) == ("error", ""), path
    assert run("import json, os; print(len(os.environ.get('PATH', '')))").stdout == "0\n"


@ON_LINUX
@pytest.mark.parametrize("kind", ["AF_INET", "AF_INET6", "AF_UNIX"])
def test_a_program_opens_no_socket(kind: str) -> None:
    result = run(f"import socket\nsocket.socket(socket.{kind})\nprint('open')")
    assert (result.status, result.stdout) == ("error", "")


@ON_LINUX
@pytest.mark.parametrize("call", ["os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "os.killpg(0, 9)", "signal.pidfd_send_signal(0, 9)",
                                  "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))"])  # fmt: skip
def test_a_program_cannot_end_its_parent(call: str) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        result = run(f"import os, resource, signal\n{call}\n")
        run("import os, signal; os.kill(os.getppid(), signal.SIGUSR1)")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert result.status == "error"
    assert received == []


@ON_LINUX
def test_files_are_limited_one_by_one_and_together() -> None:
    one = run("open('a', 'wb').write(bytes(10**7))")
    assert (one.status, one.limit_hit) == ("error", "1,048,576 bytes in a file")
    if "disk" not in one.isolation:
        pytest.skip("no disk of its own here")
    many = run("for i in range(100): open(f'a{i}', 'wb').write(bytes(10**6))")
    assert (many.status, many.limit_hit) == ("error", "8,388,608 bytes of disk")
    assert run("x = [open('a', 'w') for _ in range(100)]").stderr.endswith("Too many open files: 'a'\n")


@ON_LINUX
def test_limits_cannot_be_raised() -> None:
    result = run("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))")
    assert result.stderr.endswith("not allowed to raise maximum limit\n")


def test_nothing_is_left_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run("import os\nos.makedirs('a/b'); open('a/b/c', 'w').write('x'); os.chmod('a', 0)")
    run("while True: pass", SHORT)
    assert list(tmp_path.iterdir()) == []


def test_it_may_be_called_from_threads() -> None:
    results: list[Result] = []
    threads = [threading.Thread(target=lambda n=n: results.append(run(f"print({n})"))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.stdout for result in results) == ["0\n", "1\n", "2\n", "3\n"]


def test_a_machine_says_what_it_lacks() -> None:
    without, notices = find_isolation()
    whole = run("", without=without)
    assert list(notices)[len(notices) - len(weaknesses(whole)) :] == weaknesses(whole)
    bare = Result("ok", "", "", 0.0, None, ("rlimit_as",))
    assert len(weaknesses(bare)) == 4
    assert "network" in " ".join(weaknesses(bare))


@ON_LINUX
@pytest.mark.parametrize("left_out", ["landlock", "namespaces"])
def test_what_a_system_lacks_is_left_out_and_named(left_out: str) -> None:
    result = run("print(1)", without=(left_out,))
    assert result.stdout == "1\n"
    assert left_out not in result.isolation
    assert run(FORK_BOMB, without=(left_out,)).status == "error"
    assert run("import socket; socket.socket()", without=(left_out,)).status == "error"


@ON_LINUX
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="root alone is refused")
def test_root_without_a_limit_on_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match="run as another user"):
        run("print(1)", without=("seccomp",))


AS_NOBODY = """
import sys
sys.path.insert(0, sys.argv[1])
from firstlight.eval.sandbox.program import Limits, run_program
for without in ((), ("seccomp",)):
    for code in ("import os\\nwhile True: os.fork()", "open('/tmp/firstlight-test-evil', 'w')", "import os; os.kill(os.getppid(), 9)"):
        print(run_program(code, limits=Limits(wall_s=100), without=without).status)
"""


@ON_LINUX
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become another user")
def test_it_holds_for_another_user_than_root(tmp_path: Path) -> None:
    python = Path("/usr/bin/python3")
    is_new = (
        python.exists()
        and subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode == 0
    )
    source = Path(__file__).resolve().parents[3] / "src"
    if not is_new or not all(folder.stat().st_mode & 0o005 == 0o005 for folder in [source, *source.parents]):
        pytest.skip("no interpreter, or no source, that others may read")
    done = subprocess.run(
        [python, "-B", "-c", AS_NOBODY, str(source)], user=65534, group=65534, extra_groups=[], env={"PATH": ""}, cwd="/",
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.stdout.split() == ["error"] * 6, done.stderr


def _processes_of(folder: Path) -> list[str]:
    """Processes that run a program of this folder now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
