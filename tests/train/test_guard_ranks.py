"""The guards between real processes: one rank's NaN, spike or hang is handled alike, and in time, on all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import free_port, run_ranks, server, set_place

from firstlight.data.batch import Batch, Position
from firstlight.errors import TrainingStopped
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime, open_runtime
from firstlight.train.guard import check_skips
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState
from firstlight.train.step import StepStats, train_step
from firstlight.train.watchdog import FIRST_STEP, Watchdog

CONFIG = GPTConfig(vocab_size=512, n_layer=2, n_head=1, n_kv_head=1, n_embd=64, max_seq_len=64)
MATRIX = "transformer.h.1.mlp.c_fc.weight"
POISONS = ["loss nan", "loss inf", "gradient nan", "gradient inf"]


class Run:
    """A tiny run on one of several ranks, made in the same way on each."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.model: GPT = build_gpt(CONFIG, device=torch.device("cpu"), compute_dtype=torch.float32, seed=1)
        self.optimizer = MuonAdamW(make_groups(self.model.named_parameters(), n_embd=64), runtime)

    def step(self, number: int, *, poison: str = "", **changes: Any) -> StepStats:
        """One step on this rank's batch of that number; ``poison`` puts something bad into this rank's pass."""
        hidden: Callable[[torch.Tensor], torch.Tensor] = self.model.hidden
        handle = None
        value = math.nan if poison.endswith("nan") else math.inf
        if poison.startswith("loss"):
            # An infinite state gives a NaN loss through inf - inf: the loss itself must be infinite.
            changes["hidden"] = lambda ids: _Infinite.apply(hidden(ids), value)
        elif poison:
            weight = dict(self.model.named_parameters())[MATRIX]
            handle = weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), value))
        batch = changes.pop("batch", None) or batch_of(self.runtime.rank, number)
        stats = train_step(self.model, self.optimizer, [batch], self.runtime, Hyper(), **changes)
        if handle:
            handle.remove()
        return stats

    def snapshot(self) -> dict[str, torch.Tensor]:
        tensors = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        return tensors | {name: t.clone() for name, t in self.optimizer.state_tensors().items()}


class _Infinite(torch.autograd.Function):
    """Hidden states that are not finite, with gradients that are."""

    @staticmethod
    def forward(context: Any, x_BTD: torch.Tensor, value: float) -> torch.Tensor:
        return torch.full_like(x_BTD, value)

    @staticmethod
    def backward(context: Any, grad_BTD: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(grad_BTD), None


def batch_of(rank: int, number: int) -> Batch:
    """Ids that repeat after seven places, each rank and step from another place on: soon learned."""
    ids = (torch.arange(65) + rank + number) % 7
    return Batch(ids[None, :-1].contiguous(), ids[None, 1:].contiguous(), Position(rows_consumed=number + 1))


def outlier_of(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, 512, (1, 65), generator=generator)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), Position(rows_consumed=number + 1))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def poison_one_rank(runtime: Runtime) -> list:
    """For each poison: (why refused, whether all is unchanged, whether it ends as without the bad step, later refusals)."""
    clean = Run(runtime)
    for number in (0, 1, 3, 4):
        clean.step(number)
    found = []
    for poison in POISONS:
        run = Run(runtime)
        run.step(0), run.step(1)
        before = run.snapshot()
        stats = run.step(2, poison=poison if runtime.rank == 1 else "")
        is_unchanged = same(before, run.snapshot()) and run.optimizer.num_updates == 2
        later = [run.step(number).skipped for number in (3, 4)]
        found.append((stats.skipped, is_unchanged, same(run.snapshot(), clean.snapshot()), later))
    return found


def test_one_ranks_nan_or_infinity_changes_no_bit_on_any_rank_and_costs_no_later_step():
    first, second = run_ranks(poison_one_rank, 2)
    assert first == second
    reasons = [reason for reason, *_ in first]
    assert reasons[0] == "loss is nan"
    assert reasons[1] in ("loss is inf", "loss is nan")
    assert all(reason.startswith("gradient norm is ") for reason in reasons[2:])
    assert [rest for _, *rest in first] == [[True, True, [None, None]]] * 4


def poison_many_steps(runtime: Runtime) -> tuple[str, int, bool]:
    run, state = Run(runtime), TrainState()
    before = run.snapshot()
    try:
        for number in range(20):
            poison = "gradient nan" if runtime.rank == 1 and number != 2 else ""
            stats = run.step(number, poison=poison)
            state = state.after(stats, num_tokens=128)
            if stats.skipped is None:
                before = run.snapshot()
            check_skips(state, limit=3, reason=stats.skipped, last_good="no checkpoint was saved yet")
    except TrainingStopped as error:
        return error.what, state.step, same(before, run.snapshot())
    return "it went on", state.step, False


def test_three_refusals_in_a_row_end_the_run_on_all_ranks_with_the_weights_of_the_last_good_step():
    first, second = run_ranks(poison_many_steps, 2)
    assert first == second == ("3 updates in a row were refused, the last at step 5: gradient norm is nan", 6, True)


def spike_on_one_rank(runtime: Runtime) -> tuple[list[int], list[str], bool, dict]:
    run, spikes = Run(runtime), SpikeGuard(window=32, min_history=8)
    refused, reasons, is_unchanged = [], [], True
    for number in range(60):
        bad = number in (45, 50) and runtime.rank == 1
        before = run.snapshot()
        stats = run.step(number, batch=outlier_of(number) if bad else None, refuse=spikes.judge)
        if stats.skipped is None:
            spikes.accept(stats.loss_nats)
        else:
            refused.append(number)
            reasons.append(stats.skipped)
            is_unchanged = is_unchanged and same(before, run.snapshot())
    return refused, reasons, is_unchanged, spikes.state()


def test_one_ranks_outlier_is_refused_by_all_ranks_and_nothing_else_is():
    first, second = run_ranks(spike_on_one_rank, 2)
    assert first == second
    refused, reasons, is_unchanged, _ = first
    assert refused == [45, 50]
    assert all(reason.startswith("loss spike: ") for reason in reasons)
    assert is_unchanged


# A hang.

DEADLINE_S = 2.0


def sleeping_before_its_batch(folder: Path) -> None:
    (folder / "hung").write_text(str(time.time()))
    time.sleep(60)


def hang_on_one_rank(rank: int, port: int, folder: Path) -> None:
    set_place(rank, 2, port)
    with open_runtime(device="cpu", dtype="fp32", num_threads=1, timeout_s=60) as runtime:
        run = Run(runtime)
        watchdog = Watchdog(
            DEADLINE_S, first_deadline_s=None, rank=rank, world_size=2, linger_s=1.0, report=lambda text: None,
            stacks_path=folder / f"stacks-rank{rank:05d}.txt",
        )  # fmt: skip
        with watchdog:
            for number in range(10):
                watchdog.beat("data" if number else FIRST_STEP)
                if number == 0 and rank == 0:
                    time.sleep(2 * DEADLINE_S)
                if number == 3 and rank == 1:
                    sleeping_before_its_batch(folder)
                if number:
                    watchdog.beat("step")
                run.step(number)
                (folder / f"done-{rank}").write_text(str(number))


def test_a_hang_of_one_rank_ends_both_in_time_with_stacks_that_show_which_and_where(tmp_path):
    port = free_port()
    processes = [
        server().Process(target=hang_on_one_rank, args=(rank, port, tmp_path), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(40)
    ended_s = time.time()
    assert [process.exitcode for process in processes] == [5, 5]
    assert ended_s - float((tmp_path / "hung").read_text()) < DEADLINE_S + 6
    # The slow first step raised no alarm: three steps were done.
    assert [(tmp_path / f"done-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    waiting, hanging = ((tmp_path / f"stacks-rank{rank:05d}.txt").read_text() for rank in range(2))
    assert "sleeping_before_its_batch" in hanging
    assert "rank 1 of 2: no progress" in hanging
    assert "'data'" in hanging
    assert "all_reduce" in waiting
    assert "sleeping_before_its_batch" not in waiting
    assert "rank 0 of 2: no progress" in waiting
    assert "'step'" in waiting


@pytest.mark.parametrize("poison", POISONS)
def test_the_poisons_are_what_their_names_say(poison):
    run = Run(Runtime(device=torch.device("cpu")))
    stats = run.step(0, poison=poison)
    kind, value = poison.split()
    assert math.isfinite(stats.loss_nats) == (kind == "gradient")
    if kind == "gradient":
        assert stats.skipped is not None
        assert value in stats.skipped
