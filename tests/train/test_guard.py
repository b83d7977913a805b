"""Signals are obeyed in every phase; a lost process is named in words; many refusals end a run."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from ranks import free_port, run_ranks, server, set_place

from firstlight.errors import Interrupted, TrainingStopped
from firstlight.runtime.context import Runtime, open_runtime
from firstlight.train.guard import Dropped, StopRequest, check_skips, naming_lost_peers, peer_lost
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


def test_requested_tells_this_process_only_and_needs_no_other():
    runtime = TwoRanks(device=torch.device("cpu"), world_size=2)
    with StopRequest(runtime).watching() as stop:
        assert stop.requested is False
        raise_signal(signal.SIGTERM)
        assert stop.requested is True


@pytest.mark.parametrize("number", SIGNALS)
def test_while_preparing_a_signal_ends_the_work_at_once_in_words(number):
    stop = StopRequest(CPU)
    with pytest.raises(Interrupted) as raised, stop.watching():  # noqa: PT012
        with stop.at_once(lambda: "while preparing; nothing was trained yet"):
            try:
                raise_signal(number)
            except Exception:
                pytest.fail("a handler of ordinary errors got it")
            pytest.fail("it went on")
        pytest.fail("it went on")
    assert raised.value.what == f"stopped by {number.name} while preparing; nothing was trained yet"
    assert "--resume" in raised.value.hint
    assert raised.value.exit_code == 130


def test_a_signal_before_the_preparation_is_not_forgotten():
    with StopRequest(CPU).watching() as stop:
        raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), stop.at_once(lambda: "x"):
            pytest.fail("it began")


def test_training_within_at_once_work_remembers_a_signal_and_after_it_at_once_goes_on():
    stop = StopRequest(CPU)
    words = ["while preparing"]
    with pytest.raises(Interrupted, match="in the final score"), stop.watching(), stop.at_once(lambda: words[0]):  # noqa: PT012
        with stop.watching():
            assert stop.agreed() is None
        words[0] = "in the final score"
        raise_signal(signal.SIGTERM)
        pytest.fail("it went on")


def test_a_signal_that_training_had_no_more_time_for_is_obeyed_after_it():
    stop = StopRequest(CPU)
    with pytest.raises(Interrupted, match="by SIGINT after"), stop.watching(), stop.at_once(lambda: "after"):  # noqa: PT012
        with stop.watching():
            raise_signal(signal.SIGINT)
            assert stop.agreed() == "SIGINT"
        pytest.fail("it was forgotten")


def test_the_innermost_at_once_says_where_it_was():
    with pytest.raises(Interrupted) as raised, StopRequest(CPU).watching() as stop, stop.at_once(lambda: "outside"):  # noqa: PT012
        with stop.at_once(lambda: "inside"):
            raise_signal(signal.SIGTERM)
        pytest.fail("it went on")
    assert raised.value.what == "stopped by SIGTERM inside"


def test_a_second_sigterm_while_the_first_is_being_obeyed_is_no_impatience():
    cleaned = []
    with StopRequest(CPU).watching() as stop, pytest.raises(Interrupted), stop.at_once(lambda: "x"):  # noqa: PT012
        try:
            raise_signal(signal.SIGTERM)
        finally:
            raise_signal(signal.SIGTERM)
            cleaned.append(True)
    assert cleaned == [True]


def test_a_signal_during_a_save_is_obeyed_at_the_next_boundary():
    saved = []
    with StopRequest(CPU).watching() as stop:
        for part in range(3):
            if part == 1:
                raise_signal(signal.SIGTERM)
            saved.append(part)
        assert saved == [0, 1, 2]
        assert stop.agreed() == "SIGTERM"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_helper_is_ended_by_a_signal_at_once():
    with StopRequest(CPU).watching() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert not stop.requested


# Another process is gone.


def lose_a_peer(rank: int, port: int, results) -> None:
    set_place(rank, 2, port)
    with open_runtime(device="cpu", dtype="fp32", num_threads=1, timeout_s=60) as runtime:
        runtime.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            with naming_lost_peers(runtime, lambda: "the last good checkpoint is runs/a/checkpoints/step_00000040"):
                while True:
                    runtime.sum_(torch.ones(1000))
        except TrainingStopped as error:
            results.put((error.exit_code, error.what, error.hint))


def test_a_rank_that_was_killed_ends_the_others_with_words_and_code_5():
    context = server()
    results, port = context.Queue(), free_port()
    processes = [context.Process(target=lose_a_peer, args=(rank, port, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    code, what, hint = results.get(timeout=30)
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert code == 5
    assert what.startswith("rank 0 of 2: another process has ended")
    for part in ("step_00000040", "--resume", "--max-restarts", "further up"):
        assert part in hint


def wait_in_vain(runtime: Runtime) -> str:
    """Rank 1 stays away from a collective for longer than its timeout."""
    import datetime

    import torch.distributed as dist

    impatient = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=1))
    said = ""
    if runtime.rank == 0:
        try:
            with naming_lost_peers(runtime, lambda: ""):
                dist.all_reduce(torch.ones(1), group=impatient)
        except TrainingStopped as error:
            said = error.what
    runtime.control.barrier()
    return said


def test_a_rank_that_does_not_answer_is_named_too():
    said, _ = run_ranks(wait_in_vain, 2)
    assert "has not answered for too long" in said
    assert "1000ms" in said


@pytest.mark.parametrize(
    "text",
    [
        "NCCL error in: ProcessGroupNCCL.cpp:2022, remote process exited or there was a network error, NCCL version 2.21",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=ALLREDUCE) ran for 600000 ms",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:24564",
        "Broken pipe",
    ],
)
def test_what_the_libraries_say_of_a_lost_process_is_known(text):
    assert peer_lost(RuntimeError(text))


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), RuntimeError("shape mismatch"), ValueError("Broken pipe")]
)
def test_other_errors_pass_as_they_are(error):
    runtime = TwoRanks(device=torch.device("cpu"), world_size=2)
    with pytest.raises(type(error)) as raised, naming_lost_peers(runtime, lambda: ""):
        raise error
    assert raised.value is error


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


def test_a_lost_process_is_told_also_where_torchruns_signal_comes_while_it_is_being_told():
    runtime = replace(CPU, world_size=2)
    lost = pytest.raises(TrainingStopped, match="another process has ended")
    with (
        StopRequest(CPU).watching() as stop,
        lost,
        naming_lost_peers(runtime, lambda: "a"),
        stop.at_once(lambda: "now"),
    ):
        try:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
        finally:
            # As in what is closed on the way out: an error of its own is being handled.
            try:
                raise KeyError("nothing more in the queue")
            except KeyError:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
