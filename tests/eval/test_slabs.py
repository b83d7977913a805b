"""Work in slabs: each item once, whatever the number of processes; what was done is not done again; stops and errors for all."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from firstlight.errors import DataError
from firstlight.eval.slabs import FIRST_SLAB, work_through
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped

SIZES = {"short": 3, "long": 100}
ALONE = Runtime(device=torch.device("cpu"))


def squares(task: str, indices: list[int]) -> list[dict]:
    return [{"task": task, "index": i, "square": i * i} for i in indices]


def test_every_item_is_worked_on_once_and_those_that_are_done_not_again():
    asked, kept, shown = [], [], []

    def work(task, indices):
        asked.extend((task, i) for i in indices)
        return squares(task, indices)

    done = [*squares("long", [5, 99]), {"task": "gone", "index": 0}, {"task": "short", "index": 3}]
    found = work_through(
        SIZES, done, work, runtime=ALONE, keeps_slab=True, on_records=kept.extend,
        progress=lambda *now: shown.append(now),
    )  # fmt: skip
    expected = [("short", i) for i in range(3)] + [("long", i) for i in range(100) if i not in (5, 99)]
    assert sorted(asked) == sorted(expected)
    assert [(r["task"], r["index"]) for r in kept] == expected
    assert {task: sorted(records) for task, records in found.items()} == {"short": [0, 1, 2], "long": [*range(100)]}
    assert found["long"][7]["square"] == 49
    assert (shown[0], shown[-1]) == ((2, 103, "short"), (103, 103, "long"))


def of_rank(runtime) -> tuple[list, list]:
    mine: list = []

    def work(task, indices):
        mine.extend((task, i) for i in indices)
        return squares(task, indices)

    found = work_through(SIZES, [], work, runtime=runtime, keeps_slab=False)
    return mine, [(task, i, found[task][i]["square"]) for task in found for i in sorted(found[task])]


def refused_on_first(runtime) -> str:
    def refuse(records):
        raise DataError("the disk is full")

    try:
        work_through(SIZES, [], squares, runtime=runtime, keeps_slab=False, on_records=refuse)
    except DataError as error:
        return error.what
    return ""


def test_two_processes_share_the_items_and_know_all_of_them():
    (one, all_one), (two, all_two) = run_ranks(of_rank, 2)
    assert not set(one) & set(two)
    assert len(one) + len(two) == 103
    assert all_one == all_two == [(task, i, i * i) for task, size in SIZES.items() for i in range(size)]


def test_what_the_first_process_cannot_keep_ends_the_work_on_all():
    first, second = run_ranks(refused_on_first, 2)
    assert first == "the disk is full"
    assert second == "rank 0: the disk is full"


def test_a_wish_to_stop_is_heard_after_a_slab_but_not_after_the_last():
    kept = []
    with pytest.raises(Dropped):
        work_through(
            {"long": FIRST_SLAB + 1}, [], squares, runtime=ALONE, keeps_slab=True, on_records=kept.extend,
            should_stop=lambda: True,
        )  # fmt: skip
    assert kept == []
    found = work_through({"short": 3}, [], squares, runtime=ALONE, keeps_slab=True, should_stop=lambda: True)
    assert len(found["short"]) == 3
