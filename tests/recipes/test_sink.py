"""Rows and lines of a run: rates by hand, rewinding, samples as text, nothing on other ranks."""

from __future__ import annotations

import pytest
import torch

from firstlight.data.batch import Position
from firstlight.optim.schedule import Hyper
from firstlight.recipes.sink import open_sink
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.runtime.metrics import read_metrics
from firstlight.train.horizon import Curve, StepHorizon
from firstlight.train.plan import Horizon, make_plan
from firstlight.train.state import TrainState
from firstlight.train.step import StepStats

PLAN = make_plan(1, vocab_size=320, seq_len=32, total_batch_size=128, horizon=Horizon("steps", 10))
HORIZON = StepHorizon(10, Curve(0, 0, 1, 0.9, 0.9, 0, 1))


def opened(run_dir, *, rank=0, world_size=1, rewind_to=0):
    runtime = Runtime(device=torch.device("cpu"), rank=rank, world_size=world_size)
    return open_sink(
        run_dir, PLAN, HORIZON, console=Console(is_main=rank == 0), runtime=runtime, peak_flops_per_s=1e9, tracker=None,
        config={}, rewind_to=rewind_to, log_every=1,
    )  # fmt: skip


def show(sink, step, *, loss=2.0, skipped=None):
    stats = StepStats(loss, 0.5, 128, 0.25, Position(rows_consumed=4 * (step + 1)), skipped)
    state = TrainState(step=step + 1, elapsed_s=0.5 * (step + 1), tokens_seen=128 * (step + 1))
    sink.show(step, stats, Hyper(lr_multiplier=0.75), state, num_tokens=128)


def test_rates_of_a_step_by_hand(tmp_path, capsys):
    with opened(tmp_path) as sink:
        show(sink, 3)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    # 128 tokens in 0.25 s; MFU counts the FLOPs of all tokens against the peak; 6 steps are left at 0.5 s each.
    assert row["tokens_per_s"] == 512
    assert row["mfu"] == pytest.approx(PLAN.flops_per_token * 512 / 1e9)
    assert row["eta_s"] == pytest.approx(3.0)
    assert (row["step"], row["tokens_seen"], row["lr_multiplier"]) == (3, 512, 0.75)
    assert "step 00003/00010 (30.00%) | loss: 2.000000" in capsys.readouterr().out


def test_mfu_is_of_all_processes_peaks(tmp_path):
    with opened(tmp_path, world_size=4) as sink:
        show(sink, 0)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["mfu"] == pytest.approx(PLAN.flops_per_token * 512 / 4e9)


def test_refused_step_is_marked_and_nan_is_null(tmp_path):
    with opened(tmp_path) as sink:
        show(sink, 0, loss=float("nan"), skipped="loss is nan")
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["loss_nats"] is None
    assert row["skipped"] == "loss is nan"


def test_going_on_from_a_checkpoint_makes_later_rows_again_each_once(tmp_path):
    with opened(tmp_path) as sink:
        for step in range(6):
            show(sink, step)
    with opened(tmp_path, rewind_to=4) as sink:
        for step in range(4, 7):
            show(sink, step)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(7))


def test_samples_are_kept_as_text_too(tmp_path):
    with opened(tmp_path) as sink:
        sink.write("sample", 5, {"samples": [{"prompt": "The", "completion": " cat ```sat"}]})
    assert "The│ cat ```sat" in (tmp_path / "samples.md").read_text()


def test_other_ranks_write_and_say_nothing(tmp_path, capsys):
    with opened(tmp_path, rank=1, world_size=2) as sink:
        show(sink, 0)
        sink.write("eval", 0, {"val_bpb": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
