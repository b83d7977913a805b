"""Work of several processes: slow ones are waited for, failures and deaths are heard by all, folders are told apart."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import run_ranks

from firstlight.errors import ConfigError, DataError, FirstlightError, TrainingStopped
from firstlight.recipes.sharing import folder_leaders, together
from firstlight.runtime.channel import Channel


def impatient(runtime) -> Channel:
    """A channel whose calls end with an error after one second."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    return Channel(runtime.rank, runtime.world_size, group)


def slow_on_rank_1(runtime) -> tuple[int, list[str]]:
    said: list[str] = []

    def work(note) -> int:
        if runtime.rank == 1:
            for shard in range(5):
                note(f"tokenising, {shard} of 5")
                time.sleep(0.5)
        return runtime.rank * 10

    return together(impatient(runtime), work, report=said.append, poll_s=0.1, say_every_s=0.8), said


def test_work_that_takes_longer_than_the_timeout_is_waited_for_and_spoken_of():
    (first, said), (second, _) = run_ranks(slow_on_rank_1, 2)
    assert (first, second) == (0, 10)
    assert 2 <= len(said) <= 3
    assert all(line.startswith("waiting for rank 1 (tokenising, ") for line in said)


def one_barrier_is_not_enough(runtime) -> str:
    channel = impatient(runtime)
    if runtime.rank == 1:
        time.sleep(2.5)
    try:
        channel.barrier()
    except RuntimeError:
        return "timed out"
    return "waited"


def test_the_same_wait_in_one_barrier_would_have_failed():
    assert "timed out" in run_ranks(one_barrier_is_not_enough, 2)


def fail_on_rank_1(runtime, expected: bool) -> tuple[str, str, str, float]:
    begun_s = time.monotonic()

    def work(note) -> None:
        if runtime.rank == 1:
            if expected:
                raise DataError("a.jsonl is damaged", hint="download it again")
            raise ZeroDivisionError("oops")
        time.sleep(30)

    try:
        together(runtime.control, work, poll_s=0.1)
    except BaseException as error:
        return type(error).__name__, str(error), getattr(error, "hint", ""), time.monotonic() - begun_s
    return "nothing", "", "", 0.0


def test_a_failure_on_one_process_is_raised_on_all_at_once_with_its_rank_and_hint():
    here, there = run_ranks(fail_on_rank_1, 2, True)
    assert here[:3] == ("DataError", "rank 1: a.jsonl is damaged\n  download it again", "download it again")
    assert there[:2] == ("DataError", "a.jsonl is damaged\n  download it again")
    assert max(here[3], there[3]) < 10, "nobody waits for the work of the others"


def test_a_mistake_of_ours_keeps_its_traceback_where_it_happened():
    here, there = run_ranks(fail_on_rank_1, 2, False)
    assert here[:2] == (FirstlightError.__name__, "rank 1: ZeroDivisionError: oops")
    assert there[0] == "ZeroDivisionError"


def die_on_rank_1(runtime, folder: Path) -> None:
    def work(note) -> None:
        if runtime.rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)

    try:
        together(runtime.control, work, poll_s=0.1)
    except TrainingStopped as error:
        (folder / "said").write_text(str(error))


def test_the_death_of_a_process_is_noticed_by_the_others_within_seconds(tmp_path):
    begun_s = time.monotonic()
    with pytest.raises(AssertionError, match="only ranks"):
        run_ranks(die_on_rank_1, 2, tmp_path, timeout_s=5)
    assert "another process has ended" in (tmp_path / "said").read_text()
    assert time.monotonic() - begun_s < 20


def leaders_of(runtime, folders: list[Path]) -> tuple[list[int], int]:
    folder = folders[runtime.rank]
    leaders = folder_leaders(runtime.control, folder, seen_within_s=0.2)
    return leaders, len(list(folder.iterdir()))


def test_ranks_that_see_one_folder_have_one_leader_and_nothing_is_left_in_it(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert [leaders for leaders, _ in run_ranks(leaders_of, 3, [a, a, a])] == [[0, 0, 0]] * 3
    assert [leaders for leaders, _ in run_ranks(leaders_of, 4, [a, b, a, b])] == [[0, 1, 0, 1]] * 4
    assert list(a.iterdir()) + list(b.iterdir()) == []


def leaders_or_error(runtime, folders: list[Path]) -> str:
    try:
        return str(folder_leaders(runtime.control, folders[runtime.rank]))
    except ConfigError as error:
        return str(error)


def test_a_folder_that_one_rank_cannot_write_is_an_error_on_all(tmp_path):
    (tmp_path / "file").write_text("")
    for said in run_ranks(leaders_or_error, 2, [tmp_path / "a", tmp_path / "file" / "b"]):
        assert "rank 1: " in said
        assert "cannot be written" in said


def test_one_process_just_works_without_a_thread(tmp_path):
    assert together(Channel(), lambda note: 7) == 7
    with pytest.raises(ZeroDivisionError):
        together(Channel(), lambda note: 1 // 0)
    assert folder_leaders(Channel(), tmp_path) == [0]
    assert list(tmp_path.iterdir()) == []
