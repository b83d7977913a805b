"""A phase past its deadline ends the process with all stacks; slow first steps, pauses and stopped processes do not."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import server

from firstlight.train.watchdog import FIRST_STEP, Watchdog


class Clock:
    """A clock that goes by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def quiet(clock: Callable[[], float], deadline_s: float = 10.0, first_deadline_s: float | None = None) -> Watchdog:
    return Watchdog(
        deadline_s, first_deadline_s=first_deadline_s, rank=0, world_size=1, stacks_path=None, report=lambda text: None,
        end=lambda code: None, clock=clock,
    )  # fmt: skip


def test_time_is_counted_from_the_last_beat():
    clock = Clock()
    watchdog = quiet(clock)
    assert watchdog.remaining_s() == math.inf, "before the first beat nothing is due"
    watchdog.beat("data")
    clock.now_s += 9
    assert watchdog.remaining_s() == 1
    watchdog.beat("forward")
    assert watchdog.remaining_s() == 10
    clock.now_s += 12
    assert watchdog.remaining_s() == -2


@pytest.mark.parametrize(("first_deadline_s", "expected"), [(None, math.inf), (500.0, 500.0)])
def test_the_first_step_has_a_deadline_of_its_own(first_deadline_s, expected):
    watchdog = quiet(Clock(), first_deadline_s=first_deadline_s)
    watchdog.beat(FIRST_STEP)
    assert watchdog.remaining_s() == expected
    watchdog.beat("second step")
    assert watchdog.remaining_s() == 10


def test_a_phase_may_bring_its_own_deadline_for_once():
    watchdog = quiet(Clock())
    watchdog.beat("save", deadline_s=99)
    assert watchdog.remaining_s() == 99
    watchdog.beat("step")
    assert watchdog.remaining_s() == 10


def test_nothing_is_due_in_a_pause_and_the_phase_starts_anew_after_it():
    clock = Clock()
    watchdog = quiet(clock)
    watchdog.beat("step")
    clock.now_s += 8
    with watchdog.paused(), watchdog.paused():
        clock.now_s += 1000
        assert watchdog.remaining_s() == math.inf
    assert watchdog.remaining_s() == 10
    with pytest.raises(ValueError, match="x"), watchdog.paused():
        raise ValueError("x")
    assert watchdog.remaining_s() == 10


def test_a_deadline_of_0_starts_no_thread():
    before = threading.active_count()
    with quiet(time.monotonic, deadline_s=0) as watchdog:
        watchdog.beat("step")
        assert threading.active_count() == before


def test_its_thread_ends_with_it():
    before = threading.active_count()
    with quiet(time.monotonic, deadline_s=60):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_beat_costs_no_more_than_a_few_microseconds():
    watchdog = quiet(time.monotonic)
    costs = []
    for _ in range(20):
        start_s = time.perf_counter()
        for _ in range(100):
            watchdog.beat("step")
        costs.append((time.perf_counter() - start_s) / 100)
    assert min(costs) < 10e-6


# Real hangs, each in a process of its own.


def start(function: Callable[..., None], *args: object):
    process = server().Process(target=function, args=args, daemon=True)
    process.start()
    return process


def watched(stacks: Path, **changes: object) -> Watchdog:
    arguments: dict = {
        "deadline_s": 0.4, "first_deadline_s": None, "rank": 1, "world_size": 2, "stacks_path": stacks, "linger_s": 0.1,
        "report": stacks.with_suffix(".said").write_text,
    }  # fmt: skip
    arguments |= changes
    return Watchdog(arguments.pop("deadline_s"), **arguments)


def sleeping_in_the_loader() -> None:
    time.sleep(60)


def hang_in_a_step(stacks: Path) -> None:
    helper = threading.Thread(target=waiting_helper, daemon=True)
    helper.start()
    with watched(stacks) as watchdog:
        watchdog.beat("forward")
        watchdog.beat("data")
        sleeping_in_the_loader()


def waiting_helper() -> None:
    time.sleep(60)


def test_a_hang_writes_all_stacks_says_what_to_do_and_ends_with_code_5(tmp_path):
    stacks = tmp_path / "stacks-rank00001.txt"
    process = start(hang_in_a_step, stacks)
    process.join(20)
    assert process.exitcode == 5
    text = stacks.read_text()
    assert "sleeping_in_the_loader" in text
    assert "waiting_helper" in text
    said = stacks.with_suffix(".said").read_text()
    assert text.startswith(said)
    for part in (
        "rank 1 of 2", "'data'", "deadline is 0.4 s", "--hang-timeout 0.4", str(stacks), "exit code 5", "--resume", "last good",
    ):  # fmt: skip
        assert part in said


def hang_with_a_console_that_is_stuck(stacks: Path) -> None:
    lock = threading.Lock()

    def report(text: str) -> None:
        lock.acquire()

    with watched(stacks, report=report, backup_s=0.3) as watchdog, lock:
        watchdog.beat("step")
        sleeping_in_the_loader()


def test_a_console_that_is_stuck_as_well_does_not_keep_the_process_alive(tmp_path):
    stacks = tmp_path / "stacks.txt"
    process = start(hang_with_a_console_that_is_stuck, stacks)
    process.join(20)
    assert process.exitcode == 1
    assert "sleeping_in_the_loader" in stacks.read_text()


def test_a_folder_that_is_gone_does_not_keep_the_process_alive(tmp_path):
    process = start(hang_in_a_step, tmp_path / "gone" / "stacks.txt")
    process.join(20)
    assert process.exitcode == 5


HOLD_THE_LOCK = """
import sys, time, pathlib
sys.path.insert(0, sys.argv[1])
from test_watchdog import watched, holding_the_lock
with watched(pathlib.Path(sys.argv[2]), backup_s=0.3) as watchdog:
    watchdog.beat("step")
    time.sleep(0.15)
    holding_the_lock()
"""


def holding_the_lock() -> None:
    # Unlike CDLL, PyDLL keeps the interpreter's lock during the call.
    ctypes.PyDLL(None).sleep(60)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the C library's sleep")
def test_a_thread_that_holds_the_interpreters_lock_is_ended_by_the_timer_in_c(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", HOLD_THE_LOCK, str(Path(__file__).parent), str(tmp_path / "stacks.txt")],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1
    assert "holding_the_lock" in done.stderr
    assert not (tmp_path / "stacks.txt").exists()


def work_in_many_ways(stacks: Path) -> None:
    """Longer than the deadline in each kind of phase that may be slow, then many good steps."""
    with watched(stacks, deadline_s=0.8) as watchdog:
        watchdog.beat(FIRST_STEP)
        time.sleep(1.2)
        watchdog.beat("save", deadline_s=60)
        time.sleep(1.2)
        watchdog.beat("step")
        with watchdog.paused():
            time.sleep(1.2)
        for _ in range(10):
            watchdog.beat("step")
            time.sleep(0.1)


def test_a_slow_first_step_a_long_save_and_a_pause_raise_no_alarm(tmp_path):
    stacks = tmp_path / "stacks.txt"
    process = start(work_in_many_ways, stacks)
    process.join(20)
    assert process.exitcode == 0
    assert not stacks.exists()


def be_stopped(stacks: Path, number: int, backup_s: float) -> None:
    with watched(stacks, deadline_s=0.8, backup_s=backup_s) as watchdog:
        watchdog.beat("step")
        # A look of the watchdog's thread, so that the timer in C runs.
        time.sleep(0.3)
        stacks.with_suffix(".ready").touch()
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        watchdog.beat("step")
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
@pytest.mark.parametrize(("number", "backup_s"), [("SIGSTOP", 30.0), ("SIGTSTP", 0.3)])
def test_a_process_that_was_stopped_for_longer_than_the_deadline_has_not_hung(tmp_path, number, backup_s):
    stacks = tmp_path / "stacks.txt"
    process = start(be_stopped, stacks, getattr(signal, number), backup_s)
    limit_s = time.monotonic() + 20
    while not stacks.with_suffix(".ready").exists():
        assert time.monotonic() < limit_s
        time.sleep(0.02)
    time.sleep(2)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGCONT)
    process.join(20)
    assert process.exitcode == 0
    assert not stacks.exists()


def test_ctrl_z_does_after_it_what_it_did_before():
    before = signal.getsignal(signal.SIGTSTP)
    with quiet(time.monotonic, deadline_s=60):
        assert signal.getsignal(signal.SIGTSTP) != before
    assert signal.getsignal(signal.SIGTSTP) == before == signal.SIG_DFL
