"""Saving behind the training steps: a step waits for a copy of the tensors only, a thread does the rest.

`SaveQueue.start` copies everything into host memory that is kept from save to save, and returns. The thread then writes
the files from the copy (see `firstlight.train.writing`), so what the optimizer does meanwhile does not matter: the files
are the same, byte for byte, as if training had waited. Saves never overlap.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from firstlight.errors import CheckpointError
from firstlight.runtime.channel import Channel
from firstlight.train.checkpoint import tensor_name
from firstlight.train.guard import peer_lost
from firstlight.train.manifest import json_bytes, reason, step_of
from firstlight.train.retention import retain
from firstlight.train.writing import ProcessesApart, Share, copy_to_host, write_checkpoint


@dataclass(frozen=True)
class Outcome:
    """What became of one save; the same on all ranks, but for the times.

    path: the checkpoint, or None. error: why there is none. copy_s: that training waited for the copy. waited_s: that it
    waited for the save before. write_s: of checking, writing and hashing. num_bytes: of all files of the checkpoint.
    """

    step: int
    path: Path | None
    error: CheckpointError | None
    copy_s: float
    waited_s: float
    write_s: float
    num_bytes: int


@dataclass(frozen=True)
class _Job:
    step: int
    share: Share
    state: bytes
    shapes: Mapping[str, tuple[int, ...]]
    best_step: int | None
    copy_s: float
    waited_s: float
    done: threading.Event


class SaveQueue:
    """Saves of one run, one after the other. All ranks make the same calls of `start`, with the same steps.

    keep: newest good checkpoints that stay, beside the best; at least one. channel: used by this queue alone.
    asynchronous: False does everything within `start`. report: told, by whoever calls `finished` or `wait`, of files that
    could not be deleted.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        channel: Channel,
        asynchronous: bool = True,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.keep, self.channel, self.asynchronous = keep, channel, asynchronous
        self._report = report
        self._buffers: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "rng": {}}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        """The latest job's ``done``."""
        self._idle.set()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcomes: deque[Outcome] = deque()
        self._said: deque[str] = deque()
        self._lock = threading.Lock()
        self._known_good: set[Path] = set()
        self._apart: ProcessesApart | None = None

    def start(
        self,
        *,
        step: int,
        model: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, torch.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        state: Mapping[str, Any],
        rng: Mapping[str, torch.Tensor] | None = None,
        best_step: int | None = None,
    ) -> None:
        """Save what these tensors hold now as the checkpoint of ``step``; they may change as soon as this returns.

        Waits for the save before. model: empty on ranks above 0 where all have the same weights. A name ``NAME[a:b]`` is
        for elements a to b of the flattened tensor NAME. shapes: the whole shapes of tensors of all ranks; every tensor in
        pieces must be among them, and every one among them must be saved. state: JSON values; the first rank's is kept.
        best_step: a checkpoint that stays however old it is.

        Raises nothing for a save that fails: its `Outcome` says so, on every rank.
        """
        begun_s = time.perf_counter()
        self._idle.wait()
        copying_s = time.perf_counter()
        share, state_bytes = self._copy(model, optimizer, rng or {}, state)
        copied_s = time.perf_counter()
        job = _Job(
            step, share, state_bytes, dict(shapes), best_step,
            copy_s=copied_s - copying_s, waited_s=copying_s - begun_s, done=threading.Event(),
        )  # fmt: skip
        if not self.asynchronous:
            self._outcomes.append(self._write(job))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
            self._thread.start()
            # A thread that is still in compiled code when the interpreter ends takes the process down with an abort.
            atexit.register(self.close)
        # In this order, a Ctrl-C between the two leaves nothing that would be waited for in vain.
        self._jobs.put(job)
        self._idle = job.done

    def finished(self) -> list[Outcome]:
        """Outcomes since the last call of `finished` or `wait`, without waiting."""
        while self._said:
            text = self._said.popleft()
            if self._report:
                self._report(text)
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def wait(self) -> list[Outcome]:
        """As `finished`, after the save in flight has ended."""
        self._idle.wait()
        return self.finished()

    @property
    def known_good(self) -> set[Path]:
        """Checkpoints that were saved or verified by this run and are still there."""
        with self._lock:
            return {path for path in self._known_good if path.is_dir()}

    def note_good(self, path: Path) -> None:
        """Take ``path`` for good without reading it: the run started from it."""
        with self._lock:
            self._known_good.add(path)

    def where_saved(self) -> str:
        """The newest checkpoint that is known to be good, for a message."""
        newest = max(self.known_good, key=lambda path: step_of(path) or 0, default=None)
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was saved yet"

    def close(self) -> None:
        """Wait for the save in flight and end the thread. What became of it is still in `finished`."""
        self._idle.wait()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
            atexit.unregister(self.close)

    def give_up(self) -> None:
        """As `close`, but a save in flight ends before its next file, as one that failed. For an end at once."""
        self._given_up.set()
        self.close()

    def __enter__(self) -> SaveQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and peer_lost(error):
            # The others' shares will not come; gloo does not always say so to whoever waits for them.
            self.channel.abandon()
        # Somebody who wants an end at once does not wait for a whole save.
        if kind is KeyboardInterrupt:
            self.give_up()
        else:
            self.close()

    def _copy(
        self,
        model: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, torch.Tensor],
        rng: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
    ) -> tuple[Share, bytes]:
        weights = {tensor_name(name): tensor for name, tensor in model.items()}
        try:
            share = Share(
                model=copy_to_host(weights, self._buffers["model"]),
                optimizer=copy_to_host(optimizer, self._buffers["optimizer"]),
                rng=copy_to_host(rng, self._buffers["rng"]),
            )
            for device in {tensor.device for tensor in (*weights.values(), *optimizer.values()) if tensor.is_cuda}:
                torch.cuda.current_stream(device).synchronize()
            return share, json_bytes(state)
        except Exception as error:
            # Not raised here: the other ranks would wait for this one's share.
            return Share(problem=error), b""

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outcome = self._write(job)
            except BaseException as error:
                # Whatever it is, the run must hear of it and must not wait for ever.
                what = f"the checkpoint of step {job.step} could not be saved: {type(error).__name__}: {error}"
                outcome = self._failed(job, CheckpointError(what), 0.0)
            self._outcomes.append(outcome)
            job.done.set()

    def _write(self, job: _Job) -> Outcome:
        begun_s = time.perf_counter()
        try:
            if self._apart is not None:
                raise self._apart
            path, num_bytes = write_checkpoint(
                self.directory, job.share, step=job.step, state=job.state, shapes=job.shapes,
                channel=self.channel, report=self._said.append, given_up=self._given_up.is_set,
            )  # fmt: skip
        except CheckpointError as error:
            # Words that cross after this would be taken for answers to other questions.
            self._apart = error if isinstance(error, ProcessesApart) else None
            return self._failed(job, error, time.perf_counter() - begun_s)
        self.note_good(path)
        if self.channel.rank == 0:
            self._delete_old(job.best_step)
        return Outcome(job.step, path, None, job.copy_s, job.waited_s, time.perf_counter() - begun_s, num_bytes)

    def _failed(self, job: _Job, error: CheckpointError, write_s: float) -> Outcome:
        return Outcome(job.step, None, error, job.copy_s, job.waited_s, write_s, 0)

    def _delete_old(self, best_step: int | None) -> None:
        try:
            retain(
                self.directory, keep=self.keep, best_step=best_step, known_good=self.known_good,
                report=self._said.append,
            )  # fmt: skip
        except OSError as error:
            self._said.append(f"old checkpoints in {self.directory} could not be looked through ({reason(error)})")
