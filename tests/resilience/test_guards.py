"""Bad numbers, outliers, ranks that stand still or drift apart: found, said, and without harm to the weights."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from resilience import faults
from resilience.harness import (
    TINY,
    assert_same_run,
    launch,
    losses,
    resumed,
    rows,
    run_to_end,
    steps_saved,
    tensors,
)

EACH = replace(TINY, save_every=1, keep=30)
"""A checkpoint after every step, all kept."""


def assert_unchanged_by_step(run_dir, step: int) -> None:
    before, after = tensors(run_dir, step), tensors(run_dir, step + 1)
    assert before.keys() == after.keys()
    different = [name for name in before if not torch.equal(before[name], after[name])]
    assert not different, f"step {step} changed {different[:3]}"


@pytest.mark.parametrize(
    ("fault", "which", "said"),
    [
        (faults.nan_loss, 1, "loss is nan"),
        (faults.nan_loss, 0, "loss is nan"),
        (faults.inf_gradient, 1, "gradient norm"),
    ],
)
def test_r16_a_bad_number_on_one_rank_changes_no_bit_on_any_and_names_its_documents(place, fault, which, said):
    job = run_to_end(place, replace(EACH, run="bad"), 2, fault=fault, fault_args=(which, (6, 9)))
    run_dir = place.runs / "bad"
    skipped = [row["step"] for row in rows(run_dir, "train") if "skipped" in row]
    assert skipped == [6, 9], "the good steps between and after must be made"
    for step in (6, 9):
        assert_unchanged_by_step(run_dir, step)
    events = [row for row in rows(run_dir, "event") if "refused" in row["what"]]
    assert [row["step"] for row in events] == [6, 9]
    for row in events:
        assert said in row["what"]
        assert row["documents"]
        assert all(name.startswith("part_") for name in row["documents"])
    assert f"step 6: update refused ({said}" in job.output(0)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(run_dir).values())


@pytest.mark.slow
def test_r16_many_bad_steps_in_a_row_end_all_ranks_with_the_last_good_checkpoint(place):
    job = run_to_end(
        place, replace(EACH, run="broken", nonfinite_limit=3), 2, codes=5,
        fault=faults.nan_loss, fault_args=(1, tuple(range(7, 20))),
    )  # fmt: skip
    run_dir = place.runs / "broken"
    assert "3 updates in a row were refused" in job.output(0)
    assert "last good checkpoint" in job.output(0)
    for step in steps_saved(run_dir):
        assert all(bool(tensor.isfinite().all()) for tensor in tensors(run_dir, step).values())


LONG = replace(TINY, num_iterations=40, save_every=10)


@pytest.mark.slow
def test_r17_a_spike_is_skipped_without_a_trace_in_the_weights(place):
    settings = replace(LONG, run="spiky", spike="skip", save_every=1, keep=50)
    job = run_to_end(place, settings, 2, fault=faults.outlier, fault_args=(36,))
    run_dir = place.runs / "spiky"
    assert [row["step"] for row in rows(run_dir, "train") if "skipped" in row] == [36]
    assert_unchanged_by_step(run_dir, 36)
    (event,) = [row for row in rows(run_dir, "event") if "spike" in row["what"]]
    assert event["documents"]
    assert "spike" in job.output(0)


@pytest.mark.slow
def test_r17_the_window_of_recent_losses_survives_a_resume(place):
    # A window that began anew at the resume would be too short to judge step 36.
    settings = replace(LONG, run="spiky", spike="skip")
    run_to_end(place, settings, codes=130, fault=faults.signal_in_step, fault_args=(0, 33))
    run_to_end(place, resumed("spiky"), fault=faults.outlier, fault_args=(36,))
    assert [row["step"] for row in rows(place.runs / "spiky", "train") if "skipped" in row] == [36]


@pytest.mark.slow
def test_r17_a_rollback_goes_back_to_the_last_checkpoint_and_passes_over_the_rows_of_the_spike(place):
    settings = replace(LONG, run="spiky", spike="rollback")
    job = run_to_end(place, settings, 2, fault=faults.outlier, fault_args=(36,))
    run_dir = place.runs / "spiky"
    assert "spike" in job.output(0)
    (event,) = [row for row in rows(run_dir, "run") if "rolled back" in row["what"]]
    assert "spike" in event["what"], "rows of the steps that are made again are gone, so this one must say why"
    assert event["documents"]
    assert steps_saved(run_dir)[-1] == 40
    steps = [step for step, _ in losses(run_dir)]
    assert sorted(set(steps)) == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "args"),
    [
        pytest.param(faults.hang_in_step, (1, 6), id="step"),
        pytest.param(faults.hang_in_loader, (1, 6), id="loader"),
        pytest.param(faults.hang_in_save, (0,), id="save"),
    ],
)
def test_r19_a_rank_that_stands_still_ends_all_with_the_stacks_of_all_threads(place, straight, fault, args):
    started_s = time.monotonic()
    job = launch(place, replace(TINY, run="still", hang_timeout=4.0), 2, fault=fault, fault_args=args)
    codes = job.wait(timeout_s=60)
    assert all(code > 0 for code in codes), job.everything()
    assert time.monotonic() - started_s < 60
    for rank in (0, 1):
        assert "Thread" in job.output(rank), job.everything()
    assert "faults.py" in job.output(args[0]), "the stack must show where the rank stands"
    assert "--hang-timeout" in job.everything()
    run_to_end(place, resumed("still"), 2)
    assert_same_run(straight(2), place.runs / "still")


@pytest.mark.slow
def test_r19_a_slow_first_step_is_no_hang(place):
    # A first step may compile for minutes; only steps after it are held to the deadline.
    run_to_end(
        place, replace(TINY, run="slow", num_iterations=3, hang_timeout=3.0), 2,
        fault=faults.slow_first_step, fault_args=(5.0,),
    )  # fmt: skip


def test_r23_one_flipped_bit_on_one_rank_is_found_within_the_interval(place):
    settings = replace(TINY, run="apart", check_replicas_every=4)
    job = launch(place, settings, 2, fault=faults.flip_weight, fault_args=(1, 7))
    codes = job.wait()
    assert all(code > 0 for code in codes), job.everything()
    done = len(losses(place.runs / "apart"))
    assert done == 8, f"the check before step 8 must find it, and nothing may be trained or saved after: {done}"
    assert steps_saved(place.runs / "apart") == [5]
    assert "rank" in job.output(0)
    assert "weight" in job.output(0)
    assert "--resume" in job.output(0)
