"""Saving behind the steps: the same bytes as a save that was waited for, never two at once, and no failure goes unheard."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torn import SHAPES, assert_holds, in_threads, names, share_of, whole_tensors

from firstlight.errors import CheckpointError
from firstlight.runtime.channel import Channel
from firstlight.train import manifest, retention, writing
from firstlight.train.checkpoint import find_latest_good, list_steps
from firstlight.train.saving import SaveQueue


def start(saves, step, *, share=None, **options):
    """A save of `whole_tensors` moved by the step."""
    parts = share or share_of(saves.channel.rank, saves.channel.world_size, float(step))
    saves.start(
        step=step, **parts, shapes=SHAPES, state={"step": step}, rng={"cpu": torch.arange(8, dtype=torch.uint8)}, **options
    )  # fmt: skip


def open_queue(directory, channel=None, **options):
    return SaveQueue(directory, **{"keep": 2, "channel": channel or Channel()} | options)


class Gate:
    """Holds every file of a save back until it is opened; `reached` is set as soon as one waits."""

    def __init__(self, monkeypatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.written: list[str] = []
        original = writing.save_file

        def held(tensors, path):
            self.reached.set()
            assert self.open.wait(20)
            self.written.append(path.name)
            original(tensors, path)

        monkeypatch.setattr(writing, "save_file", held)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


# The same files (R20)


@pytest.mark.parametrize("world_size", [1, 2])
def test_weights_that_change_right_after_the_start_change_no_byte(tmp_path, gate, world_size):
    def release():
        # No byte was written before the weights of all ranks had changed.
        assert not list((tmp_path / "behind").rglob("*.safetensors"))
        gate.open.set()

    changed = threading.Barrier(world_size, action=release)

    def one(channel, name, asynchronous):
        with open_queue(tmp_path / name, channel, asynchronous=asynchronous) as saves:
            for step in (1, 2):
                share = share_of(channel.rank, world_size, float(step))
                start(saves, step, share=share)
                for tensor in (*share["model"].values(), *share["optimizer"].values()):
                    tensor.fill_(float("nan"))
                if asynchronous and step == 1:
                    changed.wait(20)
            return [(outcome.step, outcome.error) for outcome in saves.wait()]

    for name, asynchronous in (("behind", True), ("waited", False)):
        found = in_threads(world_size, one, name, asynchronous)
        assert found == [[(1, None), (2, None)]] * world_size
    assert contents(tmp_path / "behind") == contents(tmp_path / "waited")
    assert len(contents(tmp_path / "behind")) == 2 * (4 + world_size)
    assert_holds(tmp_path / "behind" / "step_00000002", 2)


def test_start_returns_before_the_files_are_written_and_the_outcome_comes_later(tmp_path, gate):
    with open_queue(tmp_path) as saves:
        start(saves, 3)
        assert gate.reached.wait(20)
        assert saves.finished() == []
        assert saves.where_saved() == "no checkpoint was saved yet"
        assert names(tmp_path) == [".tmp-step_00000003"]
        gate.open.set()
        (outcome,) = saves.wait()
        assert saves.finished() == []
    path = tmp_path / "step_00000003"
    assert (outcome.step, outcome.path, outcome.error) == (3, path, None)
    assert outcome.num_bytes == sum(f.stat().st_size for f in path.iterdir() if f.name != "manifest.json")
    assert outcome.write_s > 0
    assert saves.known_good == {path}
    assert saves.where_saved() == f"the last good checkpoint is {path}"
    assert_holds(path, 3)


def test_waiting_queues_do_everything_within_start(tmp_path):
    before = threading.active_count()
    with open_queue(tmp_path, asynchronous=False) as saves:
        start(saves, 1)
        assert names(tmp_path) == ["step_00000001"]
        assert [outcome.path for outcome in saves.finished()] == [tmp_path / "step_00000001"]
        assert threading.active_count() == before


def test_compiled_names_and_plain_ones_make_the_same_files(tmp_path):
    weights, state = whole_tensors(1.0)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    for name, model in (("plain", weights), ("compiled", compiled)):
        with open_queue(tmp_path / name) as saves:
            saves.start(step=1, model=model, optimizer=state, shapes=SHAPES, state={})
    assert contents(tmp_path / "plain") == contents(tmp_path / "compiled")


# One after the other (R21)


def test_a_save_that_is_due_during_another_waits_and_never_mixes(tmp_path, gate):
    with open_queue(tmp_path, keep=9) as saves:
        start(saves, 1)
        assert gate.reached.wait(20)
        threading.Timer(0.5, gate.open.set).start()
        for step in (2, 3, 4):
            start(saves, step)
        outcomes = saves.wait()
    assert [outcome.step for outcome in outcomes] == [1, 2, 3, 4]
    assert all(outcome.error is None for outcome in outcomes)
    assert outcomes[1].waited_s > max(0.1, outcomes[0].waited_s)
    for step in (1, 2, 3, 4):
        assert_holds(tmp_path / f"step_0000000{step}", step)


def test_only_one_save_writes_at_a_time(tmp_path, monkeypatch):
    writers = []
    original = writing.save_file

    def slow(tensors, path):
        writers.append(path.parent.name)
        others = set(writers)
        time.sleep(0.01)
        original(tensors, path)
        assert set(writers) == others
        if "rng" in path.name:
            writers.clear()
        assert len(others) == 1

    monkeypatch.setattr(writing, "save_file", slow)
    with open_queue(tmp_path) as saves:
        for step in range(1, 5):
            start(saves, step)
        assert [outcome.error for outcome in saves.wait()] == [None] * 4


# Failures (R13)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_is_an_outcome_on_all_ranks_and_the_next_one_works(tmp_path, monkeypatch, asynchronous):
    original = writing._write_tensors

    def one(channel):
        with open_queue(tmp_path, channel, asynchronous=asynchronous) as saves:
            for step in (1, 2, 3):
                start(saves, step)
            return saves.wait(), saves.known_good, saves.where_saved()

    def refusing(path, tensors):
        if "step_00000002" in path.parent.name and "00001-of" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, tensors)

    monkeypatch.setattr(writing, "_write_tensors", refusing)
    for outcomes, known_good, where in in_threads(2, one):
        assert [outcome.error is None for outcome in outcomes] == [True, False, True]
        failed = outcomes[1]
        assert (failed.step, failed.path, failed.num_bytes) == (2, None, 0)
        assert failed.error.what.startswith("rank 1: the checkpoint of step 2 could not be saved")
        assert "No space left on device" in failed.error.what
        assert known_good == {tmp_path / "step_00000001", tmp_path / "step_00000003"}
        assert where == f"the last good checkpoint is {tmp_path / 'step_00000003'}"
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_a_copy_that_fails_on_one_rank_is_an_outcome_on_all(tmp_path):
    class NoMemory(torch.Tensor):
        def is_contiguous(self, **kwargs):
            raise RuntimeError("CUDA error: out of memory")

    def one(channel):
        share = share_of(channel.rank, 2, 1.0)
        if channel.rank == 1:
            share["optimizer"]["b/momentum"] = share["optimizer"]["b/momentum"].as_subclass(NoMemory)
        with open_queue(tmp_path, channel) as saves:
            start(saves, 1, share=share)
            return saves.wait()

    for (outcome,) in in_threads(2, one):
        assert "rank 1" in outcome.error.what
        assert "out of memory" in outcome.error.what
    assert find_latest_good(tmp_path) is None


def test_a_state_that_json_cannot_hold_is_an_outcome(tmp_path):
    with open_queue(tmp_path) as saves:
        saves.start(step=1, model={}, optimizer={}, shapes={}, state={"best_bpb": float("nan")})
        (outcome,) = saves.wait()
    assert isinstance(outcome.error, CheckpointError)
    assert "JSON" in outcome.error.what


def test_after_the_channel_broke_it_is_not_used_again(tmp_path):
    class Broken(Channel):
        def gather_texts(self, text):
            said.append(text)
            raise RuntimeError("Connection closed by peer")

    said: list[str] = []
    with open_queue(tmp_path, Broken()) as saves:
        start(saves, 1)
        start(saves, 2)
        outcomes = saves.wait()
    assert len(said) == 1
    assert all("Connection closed by peer" in outcome.error.what for outcome in outcomes)
    assert [outcome.step for outcome in outcomes] == [1, 2]


def test_whatever_goes_wrong_in_the_thread_is_an_outcome(tmp_path, monkeypatch):
    def killed(*args):
        raise SystemExit("spam")

    monkeypatch.setattr(writing, "save_file", killed)
    with open_queue(tmp_path) as saves:
        start(saves, 1)
        (outcome,) = saves.wait()
    assert "SystemExit: spam" in outcome.error.what


def leave_or_save(runtime, directory):
    with open_queue(Path(directory), runtime.background) as saves:
        start(saves, 1)
        first = saves.wait()[0].error
        if runtime.rank == 1:
            return first, None, saves.where_saved()
        start(saves, 2)
        return first, type(saves.wait()[0].error).__name__, saves.where_saved()


def test_a_process_that_ends_makes_the_others_save_fail_and_not_hang(tmp_path):
    where = f"the last good checkpoint is {tmp_path / 'step_00000001'}"
    begun_s = time.monotonic()
    assert run_ranks(leave_or_save, 2, str(tmp_path)) == [(None, "ProcessesApart", where), (None, None, where)]
    # The processes would wait for a minute for one that only hangs.
    assert time.monotonic() - begun_s < 40
    assert names(tmp_path) == ["step_00000001"]


# What is kept (R22)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_and_the_best_are_kept(tmp_path, keep):
    with open_queue(tmp_path, keep=keep) as saves:
        for step in range(1, 7):
            start(saves, step, best_step=2 if step > 2 else None)
        saves.wait()
        kept = sorted({2 if keep < 5 else 1, *range(7 - keep, 7)})
        assert list_steps(tmp_path) == kept
        assert {path.name for path in saves.known_good} == {f"step_0000000{step}" for step in kept}


def test_a_deletion_that_fails_is_told_by_the_caller_of_wait_and_does_not_fail_the_save(tmp_path, monkeypatch):
    said, threads = [], []
    original = retention.os.rename

    def stubborn(source, target):
        if Path(source).name == "step_00000001":
            raise OSError(errno.EBUSY, "Device or resource busy")
        original(source, target)

    def report(text):
        said.append(text)
        threads.append(threading.current_thread())

    monkeypatch.setattr(retention.os, "rename", stubborn)
    with open_queue(tmp_path, keep=1, report=report) as saves:
        for step in (1, 2, 3):
            start(saves, step)
        assert [outcome.error for outcome in saves.wait()] == [None] * 3
    assert list_steps(tmp_path) == [1, 3]
    assert set(threads) == {threading.current_thread()}
    assert all("step_00000001 could not be deleted (Device or resource busy)" in text for text in said)
    assert len(said) == 2


def test_the_checkpoint_that_a_run_started_from_is_known_to_be_good(tmp_path, monkeypatch):
    with open_queue(tmp_path) as saves:
        start(saves, 99_999_999)
        saves.wait()
    with open_queue(tmp_path, keep=2) as saves:
        saves.note_good(tmp_path / "step_99999999")
        assert saves.where_saved().endswith("step_99999999")
        start(saves, 100_000_000)
        saves.wait()
        # By number: as words, 100000000 comes before 99999999.
        assert saves.where_saved().endswith("step_100000000")
        saves.note_good(tmp_path / "step_00000007")  # deleted meanwhile
        assert {path.name for path in saves.known_good} == {"step_99999999", "step_100000000"}


def test_what_this_run_saved_is_not_read_again_to_see_what_may_go(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "verify", lambda path: pytest.fail(f"{path} was read"))
    with open_queue(tmp_path, keep=2) as saves:
        for step in (1, 2, 3, 4):
            start(saves, step)
        assert [outcome.error for outcome in saves.wait()] == [None] * 4
    assert list_steps(tmp_path) == [3, 4]


# The end


def test_closing_waits_and_leaves_no_thread(tmp_path, gate):
    before = threading.active_count()
    saves = open_queue(tmp_path)
    start(saves, 1)
    assert threading.active_count() == before + 1
    threading.Timer(0.1, gate.open.set).start()
    saves.close()
    assert threading.active_count() == before
    assert [outcome.path for outcome in saves.finished()] == [tmp_path / "step_00000001"]
    saves.close()


def test_an_end_at_once_gives_a_save_in_flight_up_before_its_next_file(tmp_path, gate):
    with open_queue(tmp_path) as saves:
        start(saves, 1)
        gate.open.set()
        saves.wait()
    gate.open.clear()
    gate.reached.clear()
    gate.written.clear()
    saves = open_queue(tmp_path)

    def interrupted():
        with saves:
            start(saves, 2)
            assert gate.reached.wait(20)
            threading.Timer(0.1, gate.open.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (outcome,) = saves.finished()
    assert "the run was ended meanwhile" in outcome.error.what
    assert gate.written == ["model.safetensors"]
    assert names(tmp_path) == ["step_00000001"]


AT_EXIT = """
import sys, torch
from pathlib import Path
from firstlight.runtime.channel import Channel
from firstlight.train.saving import SaveQueue

saves = SaveQueue(Path(sys.argv[1]), keep=2, channel=Channel())
tensors = {f"w{i}": torch.full((1 << 20,), float(i)) for i in range(8)}
saves.start(step=1, model=tensors, optimizer={}, shapes={}, state={})
sys.exit(3)
"""


def test_an_interpreter_that_ends_during_a_save_ends_in_order_and_leaves_it_whole(tmp_path):
    # A daemon thread in compiled code would bring the process down with an abort.
    done = subprocess.run([sys.executable, "-c", AT_EXIT, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")
    said = []
    assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000001"
    assert said == []
