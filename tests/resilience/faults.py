"""What is done to a job from inside, at an exact moment: each is called in every process before the recipe starts.

The first argument is the process's rank; ``which`` is the rank that is struck.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from firstlight.data.loader import Loader
from firstlight.recipes import base, stage
from firstlight.recipes.probes import BpbProbe
from firstlight.recipes.settings import BaseSettings
from firstlight.train.trainer import Trainer


def _before_step(act: Callable[[Trainer, int], None]) -> None:
    """Call ``act(trainer, step)`` at the start of each update."""
    real = Trainer.advance

    def advance(self: Trainer, state: Any) -> Any:
        act(self, state.step)
        return real(self, state)

    Trainer.advance = advance  # type: ignore[method-assign]


def record_rows(rank: int, folder: Path) -> None:
    """Write a hash of every row that this rank's loader gives, in order, to FOLDER/RANK.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    real = Loader.__next__

    def following(self: Loader) -> Any:
        batch = real(self)
        rows = torch.cat([batch.inputs_BT, batch.targets_BT], dim=1)
        with open(folder / f"{rank}.txt", "a") as file:
            for row in rows:
                file.write(hashlib.sha256(row.numpy().tobytes()).hexdigest() + "\n")
        return batch

    Loader.__next__ = following  # type: ignore[method-assign]


def stop_in_process_at_every_step(rank: int) -> None:
    """Make one call of the recipe many: it is ended in the middle of step 1, 2, ... and resumed each time.

    The end comes without a save at the step itself, so the checkpoint before it is what the next one goes on from. Saving
    at each step makes that the state after the steps that were done.
    """
    real_advance, real_train = Trainer.advance, base.train_base
    stop_at = 0

    def advance(self: Trainer, state: Any) -> Any:
        if state.step == stop_at:
            raise _PulledPlugError
        return real_advance(self, state)

    def train(settings: BaseSettings, *, given: frozenset[str]) -> Any:
        nonlocal stop_at
        settings, final = replace(settings, save_every=1), settings
        for stop_at in range(1, settings.num_iterations or 0):
            try:
                real_train(settings, given=given)
            except _PulledPlugError:
                settings = replace(settings, resume=True)
                given = frozenset({"run", "resume"})
            else:
                raise AssertionError(f"the run was not stopped at step {stop_at}")
        stop_at = -1
        return real_train(replace(final, resume=True), given=given)

    Trainer.advance = advance  # type: ignore[method-assign]
    base.train_base = train  # type: ignore[assignment]


class _PulledPlugError(Exception):
    pass


def signal_in_step(rank: int, which: int, step: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to a rank in the middle of an update."""
    _before_step(lambda trainer, at: os.kill(os.getpid(), number) if (rank, at) == (which, step) else None)


def signal_twice_in_step(rank: int, which: int, step: int, number: int = signal.SIGTERM) -> None:
    """Send two signals, one after the other, in the middle of one update."""

    def act(trainer: Trainer, at: int) -> None:
        if (rank, at) == (which, step):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    _before_step(act)


def signal_in_evaluation(rank: int, which: int, step: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to a rank when the evaluation after ``step`` steps has begun."""
    real = BpbProbe.measure

    def measure(self: BpbProbe, model: Any, at: int, **options: Any) -> Any:
        if (rank, at) == (which, step):
            os.kill(os.getpid(), number)
        return real(self, model, at, **options)

    BpbProbe.measure = measure  # type: ignore[method-assign]


def signal_in_save(rank: int, which: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to a rank while it writes its first checkpoint, after the files and before the folder has its name."""
    real, sent = os.fsync, []

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if rank == which and not sent and "/.tmp-step_" in os.readlink(f"/proc/self/fd/{descriptor}"):
            sent.append(True)
            os.kill(os.getpid(), number)

    os.fsync = fsync


def signal_while_measuring(rank: int, which: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to a rank while it measures its speed, before the first step."""
    real = stage.measure_rates

    def measure(*args: Any, **options: Any) -> Any:
        if rank == which:
            os.kill(os.getpid(), number)
        return real(*args, **options)

    stage.measure_rates = measure


def files_stay_small(rank: int, from_step: int, to_step: int, largest_bytes: int) -> None:
    """Between two steps the system lets no file grow beyond a size, as a full disk or a used up quota would."""

    def act(trainer: Trainer, at: int) -> None:
        if at == from_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))
        elif at == to_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    _before_step(act)


def no_room_on_disk(rank: int, from_step: int, to_step: int) -> None:
    """Between two steps the file system says that it is full."""
    real = shutil.disk_usage

    def act(trainer: Trainer, at: int) -> None:
        if at == from_step:
            shutil.disk_usage = lambda path: real(path)._replace(free=1000)  # type: ignore[assignment]
        elif at == to_step:
            shutil.disk_usage = real

    _before_step(act)


def _with_hidden(change: Callable[[torch.Tensor], torch.Tensor], is_struck: Callable[[int], bool]) -> None:
    """What the model's trunk returns is changed in the updates that are struck."""
    real = Trainer.advance

    def advance(self: Trainer, state: Any) -> Any:
        if not is_struck(state.step):
            return real(self, state)
        before = self.hidden
        hidden = before if before is not None else self.model.hidden
        self.hidden = lambda ids: change(hidden(ids))
        try:
            return real(self, state)
        finally:
            self.hidden = before

    Trainer.advance = advance  # type: ignore[method-assign]


def nan_loss(rank: int, which: int, steps: tuple[int, ...]) -> None:
    """The loss of one rank is NaN at these steps."""
    _with_hidden(lambda hidden: hidden * float("nan"), lambda at: rank == which and at in steps)


def inf_gradient(rank: int, which: int, steps: tuple[int, ...]) -> None:
    """The gradient of one tensor is infinite on one rank at these steps; the loss is finite."""

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return gradient * float("inf")

    _with_hidden(Explode.apply, lambda at: rank == which and at in steps)  # type: ignore[arg-type]


def outlier(rank: int, step: int) -> None:
    """Once, at this step, the model says the opposite of what it has learnt, on every rank: a finite loss far above the others.

    Not again where the step is made anew: what is outlandish is in the data, and that has been passed over.
    """
    struck: list[int] = []

    def is_struck(at: int) -> bool:
        is_now = at == step and not struck
        struck.extend([at] * is_now)
        return is_now

    _with_hidden(lambda hidden: -4 * hidden, is_struck)


def flip_weight(rank: int, which: int, step: int) -> None:
    """The lowest bit of one weight flips on one rank right after an update.

    After it, because each update sends every weight from the rank that updates it to the others: a bit that flips before
    is made good by that.
    """
    real = Trainer.advance

    def advance(self: Trainer, state: Any) -> Any:
        after = real(self, state)
        if (rank, state.step) == (which, step):
            weight = next(self.model.parameters())  # type: ignore[attr-defined]
            bits = weight.data.view(-1)[:1].view(torch.int32)
            bits.bitwise_xor_(torch.ones_like(bits))
        return after

    Trainer.advance = advance  # type: ignore[method-assign]


def hang_in_step(rank: int, which: int, step: int) -> None:
    """One rank stands still in an update."""
    _before_step(lambda trainer, at: time.sleep(600) if (rank, at) == (which, step) else None)


def hang_in_loader(rank: int, which: int, batches: int) -> None:
    """One rank waits for ever for its next batch, after so many."""
    real, given = Loader.__next__, []

    def following(self: Loader) -> Any:
        given.append(1)
        if rank == which and len(given) > batches:
            time.sleep(600)
        return real(self)

    Loader.__next__ = following  # type: ignore[method-assign]


def hang_in_save(rank: int, which: int) -> None:
    """One rank waits for ever for the disk when it writes a checkpoint."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if rank == which and "/.tmp-step_" in os.readlink(f"/proc/self/fd/{descriptor}"):
            time.sleep(600)
        real(descriptor)

    os.fsync = fsync


def slow_first_step(rank: int, seconds: float) -> None:
    """The first update takes long on every rank, as one that compiles does."""

    def slowly(hidden: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return hidden

    _with_hidden(slowly, lambda at: at == 0)
