"""Signals become a request that is obeyed at a step's end; a second Ctrl-C does not wait. Many refusals end a run."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from firstlight.errors import TrainingStopped
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped, StopRequest, check_skips
from firstlight.train.state import TrainState

CPU = Runtime(device=torch.device("cpu"))
SIGNALS = [signal.SIGINT, signal.SIGTERM]


class TwoRanks(Runtime):
    """Rank 0 of two; the other one reports ``others``."""

    others = 0.0

    def largest(self, value: float) -> float:
        return max(value, self.others)


def raise_signal(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_explained(number):
    said = []
    with StopRequest(CPU, report=said.append).watching() as stop:
        assert stop.agreed() is None
        raise_signal(number)
        assert stop.agreed() == stop.agreed() == number.name
    assert len(said) == 1
    assert number.name in said[0]
    assert "Ctrl-C (again) stops at once" in said[0]


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_any_signal_stops_at_once(first):
    with pytest.raises(KeyboardInterrupt), StopRequest(CPU).watching():  # noqa: PT012
        raise_signal(first)
        raise_signal(signal.SIGINT)
        pytest.fail("it went on")


@pytest.mark.parametrize("first", SIGNALS)
def test_a_scheduler_that_sends_sigterm_again_does_not_cut_the_save_short(first):
    with StopRequest(CPU).watching() as stop:
        raise_signal(first)
        raise_signal(signal.SIGTERM)
        assert stop.agreed() == first.name


@pytest.mark.parametrize("number", SIGNALS)
def test_the_handlers_from_before_are_put_back(number):
    def own(number, frame):
        pass

    before = signal.signal(number, own)
    try:
        with StopRequest(CPU).watching():
            assert signal.getsignal(number) is not own
        assert signal.getsignal(number) is own
        with pytest.raises(ValueError, match="x"), StopRequest(CPU).watching():
            raise ValueError("x")
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_it_watches_nothing_and_does_not_fail():
    found = []

    def work():
        before = signal.getsignal(signal.SIGINT)
        with StopRequest(CPU).watching() as stop:
            found.append((stop.agreed(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, True)]


def test_a_report_in_the_middle_of_another_print_does_not_lose_the_request():
    def refuse(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with StopRequest(CPU, report=refuse).watching() as stop:
        raise_signal(signal.SIGTERM)
        assert stop.agreed() == "SIGTERM"


def test_all_ranks_hear_of_a_signal_that_one_was_sent():
    runtime = TwoRanks(device=torch.device("cpu"), world_size=2)
    with StopRequest(runtime).watching() as stop:
        assert stop.agreed() is None
        TwoRanks.others = float(signal.SIGTERM)
        try:
            assert stop.agreed() == "SIGTERM"
        finally:
            TwoRanks.others = 0.0


def test_droppable_work_is_dropped_at_once_and_the_request_stays():
    with StopRequest(CPU).watching() as stop:
        with pytest.raises(Dropped), stop.droppable():  # noqa: PT012
            raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        assert stop.agreed() == "SIGTERM"
        with pytest.raises(Dropped), stop.droppable():
            pytest.fail("it began")


def test_work_after_the_droppable_part_is_not_dropped():
    with StopRequest(CPU).watching() as stop:
        with stop.droppable():
            pass
        raise_signal(signal.SIGINT)
        assert stop.agreed() == "SIGINT"


def test_no_handler_of_ordinary_errors_takes_a_drop_for_a_failure():
    assert not issubclass(Dropped, Exception)


def test_with_several_ranks_nothing_is_dropped():
    # The others would wait in a collective for the one that left.
    with StopRequest(TwoRanks(device=torch.device("cpu"), world_size=2)).watching() as stop:
        with stop.droppable():
            raise_signal(signal.SIGTERM)
        assert stop.agreed() == "SIGTERM"


@pytest.mark.parametrize(("in_a_row", "limit"), [(0, 1), (2, 3), (100, 0)])
def test_fewer_refusals_than_the_limit_end_nothing(in_a_row, limit):
    check_skips(TrainState(step=9, num_skipped_in_a_row=in_a_row), limit=limit, reason="x", last_good="y")


def test_the_limit_of_refusals_ends_the_run_and_says_why_and_where_to_go_on():
    with pytest.raises(TrainingStopped) as raised:
        check_skips(
            TrainState(step=9, num_skipped_in_a_row=3),
            limit=3,
            reason="loss is nan",
            last_good="the last good checkpoint is runs/a/checkpoints/step_00000005",
        )
    assert raised.value.exit_code == 5
    text = str(raised.value)
    for part in ("3 updates in a row", "at step 8", "loss is nan", "step_00000005", "metrics.jsonl"):
        assert part in text
