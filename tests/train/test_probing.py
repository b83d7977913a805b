"""Claims of train/probing.py: whatever a probe does, training goes on bit by bit as without it, on one process and on two."""

from __future__ import annotations

import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from firstlight.runtime.context import Runtime
from firstlight.train import probing as probing_module
from firstlight.train.guard import Dropped, StopRequest
from firstlight.train.probing import Budget, Probing
from firstlight.train.state import TrainState

CPU = Runtime(device=torch.device("cpu"))
HUGE_BYTES = 1 << 60


class Sink:
    def __init__(self) -> None:
        self.rows: list[tuple[str, int, dict]] = []
        self.warnings: list[str] = []

    def write(self, kind, step, values) -> None:
        self.rows.append((kind, step, dict(values)))

    def warn(self, text) -> None:
        self.warnings.append(text)


class Acts:
    """A probe that does one thing to the model."""

    def __init__(self, act: Callable[[Any], Any], *, name: str = "eval", budget: Budget | None = None) -> None:
        self.act, self.name, self.budget = act, name, budget or Budget(0)
        self.num_calls = 0

    def due(self, step: int, is_last: bool) -> bool:
        return True

    def measure(self, model, step, *, is_over) -> dict:
        self.num_calls += 1
        found = self.act(model)
        return found if isinstance(found, dict) else {"val_bpb": 1.0}


def fail(model) -> None:
    raise RuntimeError("no such kernel")


def no_gpu_memory(model) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def no_memory(model) -> None:
    np.ones(HUGE_BYTES, np.uint8)


def no_torch_memory(model) -> None:
    torch.ones(HUGE_BYTES, dtype=torch.uint8)


def deep(model) -> None:
    deep(model)


def sleep_for_ever(model) -> None:
    time.sleep(1000)


def spin_for_ever(model) -> None:
    while True:
        try:
            model(torch.zeros(2, 4))
        except Exception:
            continue


def disturb(model) -> None:
    torch.manual_seed(4)
    torch.rand(1000)
    model.train()
    model[1].p = 0.9
    model[1].p = 0.5
    with torch.enable_grad():
        model(torch.ones(2, 4)).sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def disturb_and_fail(model) -> None:
    disturb(model)
    fail(model)


QUICK = Budget(0.02)
BAD = {
    "raises": (fail, None, "RuntimeError: no such kernel"),
    "gpu memory": (no_gpu_memory, None, "OutOfMemoryError: CUDA out of memory"),
    "memory": (no_memory, None, "MemoryError"),
    "torch memory": (no_torch_memory, None, "RuntimeError"),
    "recursion": (deep, None, "RecursionError"),
    "sleeps": (sleep_for_ever, QUICK, "ended by force"),
    "spins": (spin_for_ever, QUICK, "ended by force"),
    "disturbs": (disturb, None, None),
    "disturbs and fails": (disturb_and_fail, None, "RuntimeError: no such kernel"),
}


def train(runtime: Runtime, probes: list[Acts], *, num_steps: int = 5) -> tuple[str, Sink, TrainState]:
    """Some steps of a small model with dropout, so that random numbers matter; a hash of all that came of it, bit by bit."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    model[2].eval()  # a mode that differs inside must survive
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sink = Sink()
    probing = Probing(probes, runtime=runtime, sink=sink, where_saved=lambda: "step_00000004 is on disk")
    state = TrainState(step=1)
    digest = hashlib.sha256()
    for step in range(1, num_steps + 1):
        state = TrainState(step=step, best_bpb=state.best_bpb, best_step=state.best_step)
        # Gradients that were there stay what they were.
        state = probing.run(model, state, is_last=step == num_steps, is_saved=True, collect=lambda: None)
        digest.update(repr([module.training for module in model.modules()]).encode())
        loss = model(torch.rand(16, 4)).square().sum()
        loss.backward()
        for parameter in model.parameters():
            runtime.sum_(parameter.grad)
            digest.update(parameter.grad.numpy().tobytes())
        optimizer.step()
        if step % 2:
            optimizer.zero_grad()
        digest.update(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest(), sink, state


@pytest.mark.parametrize("what", BAD)
def test_training_goes_on_bit_by_bit_as_without_the_probe(what: str) -> None:
    act, budget, problem = BAD[what]
    quiet, *_ = train(CPU, [])
    bad, good = Acts(act, budget=budget), Acts(lambda model: None, name="sample")
    found, sink, _ = train(CPU, [bad, good])
    assert found == quiet
    assert good.num_calls == 5
    events = [(step, values["what"]) for kind, step, values in sink.rows if kind == "event"]
    if problem is None:
        assert events == []
        assert bad.num_calls == 5
        return
    assert bad.num_calls == 3
    assert [step for step, _ in events] == [1, 2, 3, 3]
    assert all(problem in text for _, text in events[:3]), events
    assert "switched off" in events[3][1]
    assert "step_00000004 is on disk" in sink.warnings[0]


def test_random_numbers_would_matter_and_a_changed_weight_is_seen() -> None:
    # The test above proves something only where a difference shows.
    quiet, *_ = train(CPU, [])

    def change(model) -> None:
        with torch.no_grad():
            model[0].weight[0, 0] += 1e-6

    assert train(CPU, [Acts(change)])[0] != quiet


def test_the_switch_counts_failures_in_a_row() -> None:
    calls: list[int] = []

    def act(model) -> None:
        calls.append(1)
        if len(calls) in (1, 2, 4, 5, 6):
            raise RuntimeError("again")

    probe = Acts(act)
    _, sink, _ = train(CPU, [probe], num_steps=9)
    assert probe.num_calls == 6
    assert sum("switched off" in values.get("what", "") for _, _, values in sink.rows) == 1


def test_a_row_is_written_and_a_score_counts_only_by_its_own_name() -> None:
    scores = iter([{"val_bpb": 3.0}, {"partial_val_bpb": 1.0, "cut": "by its budget"}, {"val_bpb": 2.0}])
    _, sink, state = train(CPU, [Acts(lambda model: next(scores))], num_steps=3)
    assert [(kind, step) for kind, step, _ in sink.rows] == [("eval", 1), ("eval", 2), ("eval", 3)]
    assert (state.best_bpb, state.best_step) == (2.0, 3)


def test_a_probe_is_told_when_its_time_is_over() -> None:
    now_s = 100.0
    answers: list[tuple[float, bool]] = []

    class Asks(Acts):
        def measure(self, model, step, *, is_over) -> dict:
            nonlocal now_s
            for seconds in (0.0, 29.0, 1.0):
                now_s += seconds
                answers.append((now_s, is_over()))
            return {}

    probing = Probing(
        [Asks(fail, budget=Budget(30))], runtime=CPU, sink=Sink(), where_saved=lambda: "", clock=lambda: now_s
    )
    model = torch.nn.Linear(1, 1)
    for _ in range(2):
        probing.run(model, TrainState(step=1), is_last=False, is_saved=False, collect=lambda: None)
    assert answers == [(100, False), (129, False), (130, True), (130, False), (159, False), (160, True)]


@pytest.mark.parametrize(
    ("budget", "train_s", "seconds"),
    [(Budget(), 0, 120), (Budget(), 1200, 120), (Budget(), 3600, 360), (Budget(7.5), 3600, 7.5), (Budget(0), 3600, math.inf),
     (Budget(floor_s=600), 3600, 600), (Budget(floor_s=600), 36000, 3600)],
)  # fmt: skip
def test_seconds_of_a_budget(budget: Budget, train_s: float, seconds: float) -> None:
    assert budget.seconds(train_s) == seconds


def test_a_signal_drops_the_probe_and_is_no_failure() -> None:
    stop = StopRequest(CPU)
    sink = Sink()
    probing = Probing(
        [Acts(lambda model: os.kill(os.getpid(), signal.SIGTERM))], runtime=CPU, sink=sink, where_saved=lambda: ""
    )
    with stop.watching(), pytest.raises(Dropped), stop.droppable():
        probing.run(torch.nn.Linear(1, 1), TrainState(), is_last=False, is_saved=False, collect=lambda: None)
    assert sink.rows == []
    assert stop.requested


def test_the_listener_is_put_back_and_a_late_signal_does_nothing() -> None:
    before = signal.getsignal(signal.SIGURG)
    train(CPU, [Acts(sleep_for_ever, budget=QUICK)], num_steps=1)
    assert signal.getsignal(signal.SIGURG) == before
    os.kill(os.getpid(), signal.SIGURG)


class Swallows:
    """What is raised in a destructor is dropped by Python."""

    def __del__(self) -> None:
        time.sleep(0.3)


def swallow_and_sleep(model) -> None:
    del model
    swallows = Swallows()
    del swallows
    time.sleep(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_probe_that_passes_the_first_end_over_is_ended_again(monkeypatch) -> None:
    monkeypatch.setattr(probing_module, "INSIST_EVERY_S", 0.5)
    started_s = time.monotonic()
    _, sink, _ = train(CPU, [Acts(swallow_and_sleep, budget=Budget(0.05))], num_steps=1)
    assert time.monotonic() - started_s < 30
    assert "ended by force" in sink.warnings[0]


def test_a_row_that_cannot_be_written_is_a_failure_of_the_probe() -> None:
    _, sink, _ = train(CPU, [Acts(lambda model: {"val_bpb": object()})], num_steps=1)
    assert [kind for kind, _, _ in sink.rows] == ["event"]
    assert "cannot be written as JSON" in sink.warnings[0]


# The process itself ends.

KILLED_IN_A_PROBE = """
import os, sys
from pathlib import Path
import torch
from firstlight.runtime.context import Runtime
from firstlight.train.probing import Budget, Probing
from firstlight.train.state import TrainState

class Kills:
    name, budget = "eval", Budget(0)
    def due(self, step, is_last): return True
    def measure(self, model, step, *, is_over):
        if step == 7:
            os.kill(os.getpid(), 9)
        return {}

class Sink:
    def write(self, kind, step, values): print(kind, step, values.get("what", ""))
    def warn(self, text): pass

probing = Probing([Kills()], runtime=Runtime(device=torch.device("cpu")), sink=Sink(), where_saved=lambda: "", begun_path=Path(sys.argv[1]))
for step in (6, 7, 8):
    probing.run(torch.nn.Linear(1, 1), TrainState(step=step), is_last=False, is_saved=False, collect=lambda: None)
"""


def test_a_run_comes_past_a_probe_in_which_the_process_was_killed_three_times(tmp_path: Path) -> None:
    path = tmp_path / "probes-begun.json"
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED_IN_A_PROBE, str(path)], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
    last = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_PROBE, str(path)], check=True, timeout=60, capture_output=True, text=True
    )
    lines = last.stdout.splitlines()
    assert lines[1] == "event 7 the probe eval at step 7 is left out: the process has ended in it 3 times"
    assert [line.split()[:2] for line in lines] == [["eval", "6"], ["event", "7"], ["eval", "8"]]


def test_what_has_ended_is_not_noted_and_a_damaged_note_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "probes-begun.json"
    path.write_text("[1")
    probing = Probing([Acts(fail)], runtime=CPU, sink=Sink(), where_saved=lambda: "", begun_path=path)
    probing.run(torch.nn.Linear(1, 1), TrainState(), is_last=False, is_saved=False, collect=lambda: None)
    assert not path.exists()


# Two processes.


def train_on_ranks(runtime: Runtime, what: str | None, bad_rank: int) -> list[Any]:
    random.seed(runtime.rank)
    act, _, _ = BAD[what] if what else (None, None, None)

    def on_one(model) -> None:
        if act is not None and runtime.rank == bad_rank:
            act(model)

    probe = Acts(on_one)
    found, sink, state = train(runtime, [probe] if what else [])
    events = [(step, values["what"]) for kind, step, values in sink.rows if kind == "event"]
    return [found, events, probe.num_calls, state.best_bpb]


@pytest.mark.parametrize("what", [what for what, (_, budget, _) in BAD.items() if budget is None])
def test_what_fails_on_one_rank_has_failed_on_all_and_nothing_waits(what: str) -> None:
    quiet = run_ranks(train_on_ranks, 2, None, 1)
    problem = BAD[what][2]
    found = run_ranks(train_on_ranks, 2, what, 1)
    assert [row[0] for row in found] == [row[0] for row in quiet]
    assert found[0][1:] == found[1][1:]
    _, events, num_calls, best_bpb = found[0]
    if problem is None:
        assert (events, num_calls, best_bpb) == ([], 5, 1.0)
    else:
        assert (len(events), num_calls, best_bpb) == (4, 3, None)
        assert "failed at step 1: rank 1: " in events[0][1]
        assert problem in events[0][1]


def test_an_end_that_comes_outside_of_the_measurement_raises_nothing(monkeypatch) -> None:
    monkeypatch.setattr(probing_module, "INSIST_EVERY_S", 0.01)
    before = signal.getsignal(signal.SIGURG)
    with probing_module._ended_by_force(0.01, CPU):
        ends_s = time.monotonic() + 0.3
        while time.monotonic() < ends_s:
            time.sleep(0.01)
    assert signal.getsignal(signal.SIGURG) == before
