"""Words between processes: the same on all of them, whatever their length."""

from __future__ import annotations

import threading
import time

import pytest
from ranks import run_ranks

from firstlight.runtime.channel import Channel

LONG = "é" * 5000


def talk(runtime):
    texts = ["", "one", LONG]
    mine = texts[runtime.rank]
    heard = runtime.control.gather_texts(mine)
    first = runtime.background.broadcast_text("from 0" if runtime.rank == 0 else "ignored")
    nothing = runtime.control.gather_texts("")
    largest = runtime.control.largest(float(-runtime.rank))
    numbers = runtime.control.gather_numbers([runtime.rank, 0.1])
    runtime.control.barrier()
    return heard, first, nothing, largest, numbers


def test_every_process_hears_the_same():
    for heard, first, nothing, largest, numbers in run_ranks(talk, 3):
        assert heard == ["", "one", LONG]
        assert first == "from 0"
        assert nothing == ["", "", ""]
        assert largest == 0.0
        assert numbers == [[0.0, 0.1], [1.0, 0.1], [2.0, 0.1]]


def test_one_process_talks_to_itself():
    channel = Channel()
    assert channel.gather_texts("x") == ["x"]
    assert channel.broadcast_text("y") == "y"
    assert channel.largest(2.5) == 2.5
    assert channel.gather_numbers([1.0, 2.0]) == [[1.0, 2.0]]
    assert channel.barrier() is None


def fail(runtime):
    if runtime.rank == 1:
        raise RuntimeError("rank 1 breaks")
    return runtime.rank


def test_a_rank_that_fails_is_named_with_its_traceback():
    with pytest.raises(AssertionError, match=r"(?s)rank 1:.*rank 1 breaks"):
        run_ranks(fail, 2)


def abandon(runtime):
    if runtime.rank == 1:
        # Comes to nothing that rank 0 asks it, as a process that has stopped; longer than the test may take.
        time.sleep(2)
        return None
    heard = []

    def ask():
        try:
            runtime.background.gather_texts("who is there?")
        except RuntimeError as error:
            heard.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.2)
    runtime.background.abandon()
    begun_s = time.monotonic()
    thread.join(5)
    return heard, time.monotonic() - begun_s


def test_a_thread_that_waits_for_a_process_which_is_gone_is_freed_when_the_channel_is_abandoned():
    (heard, took_s), _ = run_ranks(abandon, 2)
    assert heard == ["the channel was abandoned: another process has ended"]
    assert took_s < 1
