"""A signal to one rank only: all ranks end together with one whole checkpoint, in whatever phase it comes."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest
from resilience import faults
from resilience.harness import TINY, assert_same_run, launch, losses, resumed, rows, run_to_end, steps_saved, wait_until

EVALUATING = replace(TINY, eval_every=6, eval_documents=6)


@pytest.mark.parametrize(
    ("settings", "fault", "args", "step"),
    [
        pytest.param(TINY, faults.signal_in_step, (1, 7), 8, id="in-a-step"),
        pytest.param(
            TINY, faults.signal_in_step, (1, 7, signal.SIGINT), 8, id="sigint-in-a-step", marks=pytest.mark.slow
        ),
        pytest.param(TINY, faults.signal_twice_in_step, (1, 7), 8, id="twice", marks=pytest.mark.slow),
        pytest.param(EVALUATING, faults.signal_in_evaluation, (1, 6), 6, id="in-an-evaluation", marks=pytest.mark.slow),
        pytest.param(TINY, faults.signal_in_save, (0,), None, id="in-a-save"),
    ],
)
def test_r15_a_signal_to_one_rank_ends_all_with_one_checkpoint(place, straight, settings, fault, args, step):
    job = run_to_end(place, replace(settings, run="asked"), 2, codes=130, fault=fault, fault_args=args)
    run_dir = place.runs / "asked"
    newest = steps_saved(run_dir)[-1]
    assert step is None or newest == step
    assert [at for at, _ in losses(run_dir)] == list(range(newest)), (
        "the checkpoint must be of the last step that was done"
    )
    assert "--resume" in job.output(0)
    assert "Traceback" not in job.everything()
    assert any("SIG" in row["what"] for row in rows(run_dir, "event"))
    run_to_end(place, resumed("asked"), 2)
    assert_same_run(straight(2), run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_r15_a_signal_before_the_first_step_ends_all_ranks_quickly(place, which):
    timed = replace(TINY, run="asked", num_iterations=None, minutes=1.0)
    started_s = time.monotonic()
    job = launch(place, timed, 2, fault=faults.signal_while_measuring, fault_args=(which,))
    codes = job.wait(timeout_s=60)
    assert time.monotonic() - started_s < 40
    # There is nothing to save, so nobody waits for anybody: the other finds that the first is gone, and the word it left.
    # Rank 0 keeps that word where no torchrun does: when rank 0 is the one that went, the other finds it or comes too late.
    assert codes[which] == 130
    assert codes[1 - which] in ((130,) if which == 1 else (130, 5))
    assert "stopped by SIGTERM" in job.output(which)
    assert losses(place.runs / "asked") == []
    assert "Traceback" not in job.everything()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r15_a_signal_while_the_run_is_prepared_leaves_no_process_behind(place, number):
    job = launch(place, replace(TINY, run="early"), 2)
    wait_until(lambda: "vocab_size" in job.output(0), "plan", job=job)
    job.signal(1, number)
    codes = job.wait(timeout_s=60)
    assert codes == [130, 130], job.everything()
    assert "another process was stopped by" in job.output(0)
    assert "Traceback" not in job.everything()
