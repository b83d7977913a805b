"""Processes meet under a word of their own, whatever those before them have left in the store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from firstlight.errors import TrainingStopped
from firstlight.runtime.meeting import meet


def attempt(store, world_size, *, delay_s=None, timeout_s=10.0):
    """All ranks, as threads, each after its delay; what each got."""

    def come(rank):
        time.sleep((delay_s or {}).get(rank, 0.0))
        return meet(store, rank=rank, world_size=world_size, timeout_s=timeout_s)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(come, range(world_size)))


def test_all_get_the_same_word_and_each_attempt_another():
    store = dist.HashStore()
    first, second = attempt(store, 4), attempt(store, 4)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0].word != second[0].word
    # Whatever each agent thinks of restarts, the store has seen two.
    assert (first[0].number, second[0].number) == (1, 2)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_rank_that_comes_late_after_a_restart_is_waited_for(late):
    store = dist.HashStore()
    before = attempt(store, 3)
    # The others find its old hello, and rank 0's old offer and go, and must not take them for new.
    words = attempt(store, 3, delay_s={late: 0.3})
    assert len(set(words)) == 1
    assert words[0] not in before


def test_what_a_rank_killed_half_way_has_left_is_not_taken_for_it():
    store = dist.HashStore()
    with pytest.raises(TrainingStopped, match="missing: rank 0"):
        meet(store, rank=1, world_size=2, timeout_s=0.2)
    assert len(set(attempt(store, 2, delay_s={1: 0.3}))) == 1


def test_a_rank_that_does_not_come_is_named():
    with pytest.raises(TrainingStopped, match=r"rank 0 of 3: after 0 s not all .* missing: rank 0, 1, 2"):
        meet(dist.HashStore(), rank=0, world_size=3, timeout_s=0.3)
