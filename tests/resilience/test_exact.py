"""The numbers of a run do not depend on stops, on the number of processes, or on what is measured on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from resilience import faults
from resilience.harness import (
    NUM_ROWS,
    NUM_STEPS,
    TINY,
    assert_close_run,
    assert_same_run,
    losses,
    resumed,
    rows,
    run_to_end,
)


@pytest.mark.parametrize("world_size", [1, 2])
def test_r1_the_same_run_twice_is_bit_equal(place, straight, world_size):
    run_to_end(place, replace(TINY, run="again"), world_size)
    assert_same_run(straight(world_size), place.runs / "again")


def test_r2_a_run_stopped_at_every_step_is_bit_equal_to_one_that_never_stopped(place, straight):
    # One life is ended after each of its steps by turns; the text is passed more than once on the way.
    run_to_end(place, replace(TINY, run="stopped"), fault=faults.stop_in_process_at_every_step)
    reference = straight(1)
    assert rows(reference, "train")[-1]["epoch"] >= 1, "an epoch must end on the way"
    assert_same_run(reference, place.runs / "stopped")


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_r5_any_number_of_processes_trains_the_same_model(straight, world_size):
    assert_close_run(straight(1), straight(world_size))


def test_r5_any_number_of_processes_reads_the_same_rows_in_the_same_order(place):
    short = replace(TINY, num_iterations=4, save_every=0)
    orders = {}
    for world_size in (1, 2, 3):
        folder = place.runs / f"rows{world_size}"
        run_to_end(
            place, replace(short, run=f"run{world_size}"), world_size,
            fault=faults.record_rows, fault_args=(folder,),
        )  # fmt: skip
        ranks = [(folder / f"{rank}.txt").read_text().splitlines() for rank in range(world_size)]
        # The loader reads ahead: more rows than the run's may be there, but these come first.
        dealt = [line for lines in zip(*ranks, strict=False) for line in lines]
        orders[world_size] = dealt[: 4 * NUM_ROWS]
    assert len(set(orders[1])) == 4 * NUM_ROWS, "rows that repeat would prove nothing"
    assert orders[2] == orders[1]
    assert orders[3] == orders[1]


@pytest.mark.parametrize("world_size", [1, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_r6_a_checkpoint_of_two_processes_is_resumed_by_another_number(place, straight, world_size):
    run_to_end(place, replace(TINY, run="moved"), 2, codes=130, fault=faults.signal_in_step, fault_args=(0, 9))
    assert [step for step, _ in losses(place.runs / "moved")] == list(range(10))
    run_to_end(place, resumed("moved"), world_size)
    assert len(losses(place.runs / "moved")) == NUM_STEPS
    assert_close_run(straight(1), place.runs / "moved")


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_r27_scores_and_samples_on_the_way_change_nothing_that_is_trained(place, straight, world_size):
    run_to_end(place, replace(TINY, run="measured", eval_every=2, sample_every=7), world_size)
    assert len(rows(place.runs / "measured", "eval")) == 11
    assert_same_run(straight(world_size), place.runs / "measured")
