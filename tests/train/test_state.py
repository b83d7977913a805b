"""The training state: what a step changes, and that nothing is lost on the way through JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from firstlight.data.batch import Position
from firstlight.errors import CheckpointError
from firstlight.train.state import TrainState, preserved_rng, rng_tensors, set_rng_tensors
from firstlight.train.step import StepStats

CPU = torch.device("cpu")


def stats(*, rows: int = 4, skipped: str | None = None, elapsed_s: float = 0.5) -> StepStats:
    loss_nats = math.nan if skipped else 2.0
    return StepStats(loss_nats, 1.0, 30, elapsed_s, Position(1, 2, rows, 100 + rows), skipped)


FULL = TrainState(
    step=7, position=Position(1, 2, 3, 400), tokens_seen=2**40, elapsed_s=0.1 + 0.2, used_s=1e-17, best_bpb=1.9,
    best_step=5, num_skipped=2, num_skipped_in_a_row=1,
)  # fmt: skip


def test_a_good_step_moves_everything_on():
    after = FULL.after(stats(), num_tokens=64)
    assert (after.step, after.tokens_seen, after.position) == (8, 2**40 + 64, Position(1, 2, 4, 104))
    assert after.elapsed_s == 0.1 + 0.2 + 0.5
    assert (after.num_skipped, after.num_skipped_in_a_row) == (2, 0)
    assert (after.best_bpb, after.best_step, after.used_s) == (1.9, 5, 1e-17)


def test_a_refused_step_moves_the_data_on_too_and_is_counted():
    after = FULL.after(stats(skipped="loss is nan"), num_tokens=64)
    assert (after.step, after.position.rows_consumed) == (8, 104)
    assert (after.num_skipped, after.num_skipped_in_a_row) == (3, 2)


def test_an_overflow_that_lowered_the_loss_scale_does_not_count_towards_the_limit_and_does_not_clear_it():
    after = FULL.after(stats(skipped="gradient norm is inf"), num_tokens=64, mended=True)
    assert (after.num_skipped, after.num_skipped_in_a_row) == (3, 1)


@pytest.mark.parametrize(("score", "best"), [(1.8, (1.8, 7)), (1.9, (1.9, 5)), (2.0, (1.9, 5)), (None, (1.9, 5))])
def test_only_a_lower_score_is_the_best(score, best):
    assert (FULL.scored(score).best_bpb, FULL.scored(score).best_step) == best


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None])
def test_a_score_that_is_no_number_is_never_the_best(score):
    assert TrainState(step=3).scored(score) == TrainState(step=3)


def test_json_and_back_is_the_same_state_to_the_last_bit():
    for state in (TrainState(), FULL):
        text = json.dumps(state.to_dict(), allow_nan=False)
        assert TrainState.from_dict(json.loads(text)) == state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.pop("elapsed_s"), "elapsed_s is missing"),
        (lambda v: v["position"].pop("row"), "position.row is missing"),
        (lambda v: v.update(loss=1.0), "loss"),
        (lambda v: v.update(step="7"), "step = '7'"),
        (lambda v: v.update(step=True), "step = True"),
        (lambda v: v.update(step=7.5), "step = 7.5"),
        (lambda v: v["position"].update(epoch=None), "position.epoch = None"),
        (lambda v: v.update(elapsed_s=math.nan), "elapsed_s = nan"),
        (lambda v: v.update(position=[1, 2, 3, 4]), "position"),
    ],
)
def test_a_value_that_does_not_belong_is_named(change, named):
    values = FULL.to_dict()
    change(values)
    with pytest.raises(CheckpointError) as raised:
        TrainState.from_dict(values, where="runs/a/step_00000007/state.json")
    assert named in raised.value.what
    assert "runs/a/step_00000007/state.json" in raised.value.what


def test_random_numbers_go_on_where_they_were_saved():
    torch.manual_seed(3)
    torch.rand(5)
    saved = {name: tensor.clone() for name, tensor in rng_tensors(CPU).items()}
    expected = torch.rand(4)
    torch.rand(100)
    set_rng_tensors(saved, CPU)
    assert torch.equal(torch.rand(4), expected)


def test_the_random_state_of_a_device_that_is_not_used_is_left_out():
    set_rng_tensors({"cuda": torch.zeros(16, dtype=torch.uint8), "mps": torch.zeros(16, dtype=torch.uint8)}, CPU)


def test_numbers_drawn_inside_are_not_missed_outside_even_after_an_error():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with pytest.raises(KeyError), preserved_rng(CPU):  # noqa: PT012
        torch.rand(17)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)
