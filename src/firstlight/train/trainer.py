"""The one loop: save, probe, step, log. Every stage is this loop with other weights, batches, plan and probes.

At each step boundary, in this order: a checkpoint where one is due (before anything that could fail), then the probes that
are due, then one update. Probes never change what is trained and never end a run.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from firstlight.data.batch import Batch, Position
from firstlight.errors import CheckpointError, Interrupted
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime
from firstlight.train import checkpoint, guard
from firstlight.train.scaler import LossScaler
from firstlight.train.state import TrainState
from firstlight.train.step import StepStats, TrainableModel, train_step


class Horizon(Protocol):
    """When the run ends, and the numbers of each update; see `firstlight.train.horizon`."""

    def hyper(self, step: int) -> Hyper: ...
    def is_done(self, step: int) -> bool: ...
    def used_s(self) -> float: ...


class Probe(Protocol):
    """Something measured on the way. ``measure`` returns a row for the metrics of kind ``name``."""

    @property
    def name(self) -> str: ...
    def due(self, step: int, is_last: bool) -> bool: ...
    def measure(self, model: Any, step: int) -> Mapping[str, Any]: ...


class Sink(Protocol):
    """Where numbers go: `write` for rows of the metrics, `show` for the step that a person watches."""

    def write(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None: ...
    def show(self, step: int, stats: StepStats, hyper: Hyper, state: TrainState, *, num_tokens: int) -> None: ...
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


@dataclass(frozen=True)
class Saver:
    """When and where checkpoints are kept. every: steps between them (0: only at the end and on a signal)."""

    directory: Path
    every: int
    keep: int

    def due(self, step: int, *, started_at: int, is_last: bool) -> bool:
        """Whether to save before the update numbered ``step``. The step that was resumed from is on disk already."""
        if step == started_at and step > 0:
            return False
        return is_last or (self.every > 0 and step > 0 and step % self.every == 0)


class Trainer:
    """Everything that a run needs, and `fit`.

    batches: endless micro-batches of this rank. num_micro_batches: of each update. num_step_tokens: tokens of one update
    over all ranks. num_step_rows: the same in rows. documents_of: names the documents of a range of rows, for the report of
    a refused update. hidden: ``model.hidden`` or its compiled form. nonfinite_limit: refused updates in a row that end the
    run.
    """

    def __init__(
        self,
        model: TrainableModel,
        optimizer: MuonAdamW,
        batches: Iterator[Batch],
        runtime: Runtime,
        horizon: Horizon,
        *,
        num_micro_batches: int,
        num_step_tokens: int,
        num_step_rows: int,
        saver: Saver,
        sink: Sink,
        probes: Sequence[Probe] = (),
        hidden: Callable[[torch.Tensor], torch.Tensor] | None = None,
        scaler: LossScaler | None = None,
        compiled_loss: bool = False,
        documents_of: Callable[[Position, int], list[str]] | None = None,
        nonfinite_limit: int = 5,
    ) -> None:
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.runtime, self.horizon = runtime, horizon
        self.num_micro_batches = num_micro_batches
        self.num_step_tokens, self.num_step_rows = num_step_tokens, num_step_rows
        self.saver, self.sink, self.probes = saver, sink, tuple(probes)
        self.hidden, self.scaler, self.compiled_loss = hidden, scaler, compiled_loss
        self.documents_of = documents_of
        self.nonfinite_limit = nonfinite_limit
        self.last_loss_nats: float | None = None
        self._last_saved: Path | None = None

    def fit(self, state: TrainState) -> TrainState:
        """Train from ``state`` to the end of the horizon and return the last state.

        Raises Interrupted after a signal (a checkpoint is saved first), TrainingStopped where too many updates in a row
        were refused, and what the loader raises.
        """
        started_at = state.step
        stop = guard.StopRequest(self.runtime, report=self.sink.warn)
        with stop.watching(), _steady_garbage_collector() as collect:
            while True:
                is_last = self.horizon.is_done(state.step)
                signal_name = stop.agreed()
                if self.saver.due(state.step, started_at=started_at, is_last=is_last) or (
                    signal_name and state.step > started_at
                ):
                    self.save(state)
                if signal_name:
                    self.sink.write("event", state.step, {"what": f"stopped by {signal_name}"})
                    raise Interrupted(
                        f"stopped by {signal_name} after step {state.step}, {self.where_saved()}",
                        hint="go on with the same command and --resume",
                    )
                state = self.probe(state, is_last=is_last, collect=collect)
                if is_last:
                    return state
                state = self.advance(state)

    def advance(self, state: TrainState) -> TrainState:
        """One update: micro-batches in, a new state and a row of the metrics out."""
        hyper = self.horizon.hyper(state.step)
        stats = train_step(
            self.model,
            self.optimizer,
            [next(self.batches) for _ in range(self.num_micro_batches)],
            self.runtime,
            hyper,
            hidden=self.hidden,
            scaler=self.scaler,
            compiled_loss=self.compiled_loss,
        )
        before = state
        state = state.after(stats, num_tokens=self.num_step_tokens)
        self.last_loss_nats = stats.loss_nats
        self.sink.show(before.step, stats, hyper, state, num_tokens=self.num_step_tokens)
        if stats.skipped is not None:
            documents = self.documents_of(before.position, self.num_step_rows) if self.documents_of else []
            self.sink.write("event", before.step, {"what": f"update refused: {stats.skipped}", "documents": documents})
            named = f"; documents: {', '.join(documents[:3])}{' ...' * (len(documents) > 3)}" if documents else ""
            self.sink.warn(f"step {before.step}: update refused ({stats.skipped}), weights unchanged{named}")
            last_good = self.where_saved()
            guard.check_skips(state, limit=self.nonfinite_limit, reason=stats.skipped, last_good=last_good)
        return state

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of ``state``. One that fails is reported; the run and the checkpoints before it live on."""
        if self.runtime.is_main:
            values = {
                "train": replace(state, used_s=self.horizon.used_s()).to_dict(),
                "num_updates": self.optimizer.num_updates,
                "scaler": self.scaler.state() if self.scaler else None,
            }
            try:
                self._last_saved = checkpoint.save_checkpoint(
                    self.saver.directory,
                    step=state.step,
                    model=self.model.state_dict(),  # pyrefly: ignore
                    optimizer=self.optimizer.state_tensors(),
                    state=values,
                )
                checkpoint.retain(
                    self.saver.directory, keep=self.saver.keep, best_step=state.best_step, report=self.sink.warn
                )
            except CheckpointError as error:
                self.sink.warn(str(error))
                self.sink.write("event", state.step, {"what": f"save failed: {error.what}"})
        self.runtime.barrier()

    def where_saved(self) -> str:
        """The newest checkpoint of this launch, for a message."""
        if self._last_saved is not None:
            return f"the last checkpoint is {self._last_saved}"
        found = checkpoint.list_steps(self.saver.directory)
        return f"the last checkpoint is step {found[-1]}" if found else "no checkpoint was saved yet"

    def probe(self, state: TrainState, *, is_last: bool, collect: Callable[[], None]) -> TrainState:
        """Run the probes that are due. Weights, optimizer, modes and random state are as before, whatever a probe does."""
        due = [probe for probe in self.probes if probe.due(state.step, is_last)]
        for probe in due:
            try:
                with _untouched(self.model, self.runtime):
                    values = probe.measure(self.model, state.step)
            except Exception as error:
                # A run of days must not be lost to a score: the checkpoint is on disk, the failure in the record.
                what = f"the probe {probe.name} failed at step {state.step}: {type(error).__name__}: {error}"
                self.sink.warn(what)
                self.sink.write("event", state.step, {"what": what})
                continue
            self.sink.write(probe.name, state.step, values)
            state = state.scored(values.get("val_bpb"))
        if due:
            collect()
        return state


@contextmanager
def _untouched(model: Any, runtime: Runtime) -> Iterator[None]:
    """Modes and random states as they were, after the block."""
    was_training = model.training
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(runtime.device) if runtime.device.type == "cuda" else None
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, runtime.device)


@contextmanager
def _steady_garbage_collector() -> Iterator[Callable[[], None]]:
    """No automatic collection while inside, but one when the yielded function is called (every probe).

    The collector's full passes over torch's many objects stop a step for some 500 ms (nanochat dev/LOG.md, 2026-02-02).
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield lambda: (gc.collect(), None)[1]
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def tokens_per_s(num_tokens: int, elapsed_s: float) -> float:
    """Rate of a step; 0 for a step that took no time."""
    return num_tokens / elapsed_s if elapsed_s > 0 else 0.0


def mfu(flops: float, elapsed_s: float, peak_flops_per_s: float) -> float | None:
    """Share of the peak that a step reached, 0 to 1; None where the peak is not known."""
    if elapsed_s <= 0 or not math.isfinite(peak_flops_per_s) or peak_flops_per_s <= 0:
        return None
    return flops / elapsed_s / peak_flops_per_s
