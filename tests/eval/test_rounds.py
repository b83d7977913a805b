"""Claims of eval/rounds.py, with a table of agreements written by hand and on real processes."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from firstlight.errors import DataError
from firstlight.eval.rounds import Rounds
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped

ALONE = Runtime(device=torch.device("cpu"))


def test_alone_it_ends_after_its_own_batches_or_at_the_time() -> None:
    num_batches = 0
    with Rounds(ALONE, None, lambda: pytest.fail("nobody to wait for"), is_over=lambda: num_batches == 3) as rounds:
        while rounds.before_batch():
            num_batches += 1
    assert (num_batches, rounds.is_cut) == (3, True)
    with Rounds(ALONE, None, lambda: pytest.fail("nobody to wait for"), is_over=lambda: False) as rounds:
        assert rounds.before_batch()
    assert not rounds.is_cut


def test_a_stop_comes_before_the_end_of_time() -> None:
    with pytest.raises(Dropped), Rounds(ALONE, lambda: True, lambda: None, is_over=lambda: True) as rounds:
        rounds.before_batch()


def go_round(runtime: Runtime, batches: list[int], over_at: list[int], fails_at: int) -> list:
    """Rank r has batches[r] batches; its time is over before batch over_at[r]; rank 0 fails in batch fails_at."""
    mine, idle = 0, 0

    def count() -> None:
        nonlocal idle
        idle += 1

    is_cut: object = None
    try:
        with Rounds(runtime, None, count, is_over=lambda: mine >= over_at[runtime.rank]) as rounds:
            for _ in range(batches[runtime.rank]):
                if not rounds.before_batch():
                    break
                if runtime.rank == 0 and mine == fails_at:
                    raise MemoryError
                mine += 1
        is_cut = rounds.is_cut
    except (DataError, MemoryError) as error:
        is_cut = type(error).__name__
    # The next collective of both must meet.
    return [mine, idle, is_cut, runtime.control.gather_numbers([runtime.rank])]


NEVER = 99


@pytest.mark.parametrize(
    ("batches", "over_at", "fails_at", "expected"),
    [
        ([5, 2], [NEVER, NEVER], NEVER, [[5, 0, False], [2, 3, False]]),
        ([5, 2], [3, NEVER], NEVER, [[3, 0, True], [2, 1, True]]),
        ([5, 4], [NEVER, 1], NEVER, [[1, 0, True], [1, 0, True]]),
        # A rank that has done all of its own does not end the others by its clock.
        ([4, 1], [NEVER, 1], NEVER, [[4, 0, False], [1, 3, False]]),
        ([4, 4], [NEVER, NEVER], 2, [[2, 0, "MemoryError"], [3, 0, "DataError"]]),
        ([4, 0], [NEVER, NEVER], 1, [[1, 0, "MemoryError"], [0, 2, "DataError"]]),
    ],
)
def test_ranks_end_together_whatever_ends_one_of_them(batches, over_at, fails_at, expected) -> None:
    found = run_ranks(go_round, 2, batches, over_at, fails_at)
    assert [row[:3] for row in found] == expected
    assert all(row[3] == [[0], [1]] for row in found)
