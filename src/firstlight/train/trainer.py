"""The one loop: save, probe, step, log. Every stage is this loop with other weights, batches, plan and probes.

At each step boundary, in this order: a checkpoint where one is due (before anything that could fail), then the probes that
are due, then one update. Probes never change what is trained and never end a run.

``step`` counts the steps done. So metrics row ``step`` is the update from ``step`` to ``step + 1``, and a checkpoint or a
probe at ``step`` is of the weights after ``step`` steps. Whoever goes on from the checkpoint of ``step`` first cuts the
metrics back to the rows before it (`MetricsLog.rewind`); the loop then makes the others again, each once.
"""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from firstlight.data.batch import Batch, Position
from firstlight.errors import CheckpointError, ConfigError, DataError, Interrupted
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime
from firstlight.train import checkpoint, guard
from firstlight.train.scaler import LossScaler
from firstlight.train.state import TrainState, preserved_rng, rng_tensors
from firstlight.train.step import StepStats, TrainableModel, train_step


class Horizon(Protocol):
    """When the run ends, and the numbers of each update; see `firstlight.train.horizon`. Every rank gets the same answers."""

    def hyper(self, step: int) -> Hyper: ...
    def is_done(self, step: int) -> bool: ...
    def used_s(self) -> float: ...


class Probe(Protocol):
    """Something measured on the way, without gradients. ``measure`` returns a row for the metrics of kind ``name``.

    A ``val_bpb`` in the row decides which checkpoint is the best.
    """

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
    """When and where checkpoints are kept: every ``every`` steps (0: only at the end and on a signal), ``keep`` and the best."""

    directory: Path
    every: int
    keep: int

    def due(self, step: int, *, is_last: bool) -> bool:
        """Whether the state after ``step`` steps is to be saved."""
        return is_last or (self.every > 0 and step > 0 and step % self.every == 0)


class Trainer:
    """Everything that a run needs, and `fit`.

    batches: endless micro-batches of this rank. num_micro_batches: of each update. num_step_tokens: tokens of one update
    over all ranks. num_step_rows: the same in rows. documents_of: names the documents of a range of rows, for the report of
    a refused update. hidden: ``model.hidden`` or its compiled form. nonfinite_limit: refused updates in a row that end the
    run (0: none do).
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
        self._known_good: set[Path] = set()
        self._saved_step = 0
        self._save_problem: CheckpointError | None = None

    def fit(self, state: TrainState) -> TrainState:
        """Train from ``state`` to the end of the horizon and return the last state.

        A state beyond step 0 is taken to come from its checkpoint in the saver's directory, so it is not saved again.

        Raises ConfigError for a run without a step; Interrupted after a signal (a checkpoint is saved first);
        TrainingStopped where too many updates in a row were refused; DataError where the data ends or is damaged (a
        checkpoint is saved first); CheckpointError where the last checkpoint cannot be saved (after the probes).
        """
        if state.step == 0 and self.horizon.is_done(0):
            raise ConfigError("this run would end before its first step", hint="give it a longer horizon")
        self._saved_step = state.step
        if state.step:
            self._known_good.add(self.saver.directory / checkpoint.checkpoint_name(state.step))
        stop = guard.StopRequest(self.runtime, report=self.sink.warn)
        try:
            with stop.watching(), _steady_garbage_collector() as collect:
                return self._loop(state, stop, collect)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once; {self.where_saved()}", hint="go on with --resume") from None

    def _loop(self, state: TrainState, stop: guard.StopRequest, collect: Callable[[], None]) -> TrainState:
        while True:
            is_last = self.horizon.is_done(state.step)
            signal_name = stop.agreed()
            if signal_name or self.saver.due(state.step, is_last=is_last):
                self.save(state)
            if signal_name:
                self.sink.write("event", state.step, {"what": f"stopped by {signal_name}"})
                raise Interrupted(
                    f"stopped by {signal_name} after {state.step} steps, {self.where_saved()}",
                    hint="go on with the same command and --resume",
                )
            try:
                with stop.droppable():
                    state = self.probe(state, is_last=is_last, collect=collect)
            except guard.Dropped:
                continue
            if is_last:
                break
            state = self.advance(state)
        if self._save_problem is not None:
            raise CheckpointError(
                f"training is done, but {self._save_problem.what}; {self.where_saved()}",
                hint=f"{self._save_problem.hint}; then --resume does the steps since then again",
            )
        return state

    def advance(self, state: TrainState) -> TrainState:
        """One update: micro-batches in, a new state and a row of the metrics out."""
        hyper = self.horizon.hyper(state.step)
        scale = self.scaler.scale if self.scaler else None
        try:
            stats = train_step(
                self.model,
                self.optimizer,
                self._micro_batches(state.step),
                self.runtime,
                hyper,
                hidden=self.hidden,
                scaler=self.scaler,
                compiled_loss=self.compiled_loss,
            )
        except DataError:
            # It comes between micro-batches, before the update: the weights are still those of this state.
            self.save(state)
            raise
        before = state
        lowered = self.scaler is not None and self.scaler.scale != scale
        state = state.after(stats, num_tokens=self.num_step_tokens, mended=lowered)
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

    def _micro_batches(self, step: int) -> Iterator[Batch]:
        for _ in range(self.num_micro_batches):
            batch = next(self.batches, None)
            if batch is None:
                raise DataError(f"the data ended after {step} steps", hint="allow more epochs, or train for less")
            yield batch

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of ``state``. One that fails is reported; the run and the checkpoints before it live on."""
        if state.step == self._saved_step:
            return
        self._save_problem = None
        if self.runtime.is_main:
            try:
                self._save_here(state)
            except CheckpointError as error:
                self._save_problem = error
                self.sink.warn(f"{error}\n  training goes on; {self.where_saved()}")
                self.sink.write("event", state.step, {"what": f"save failed: {error.what}"})
        if self.runtime.largest(float(self._save_problem is not None)):
            self._save_problem = self._save_problem or CheckpointError("rank 0 could not save the last checkpoint")
        else:
            self._saved_step = state.step

    def _save_here(self, state: TrainState) -> None:
        values = {
            "step": state.step,
            "train": replace(state, used_s=self.horizon.used_s()).to_dict(),
            "num_updates": self.optimizer.num_updates,
            "scaler": self.scaler.state() if self.scaler else None,
        }
        path = checkpoint.save_checkpoint(
            self.saver.directory,
            step=state.step,
            model=self.model,  # pyrefly: ignore[bad-argument-type]
            optimizer=self.optimizer,
            state=values,
            rng=rng_tensors(self.runtime.device),
            report=self.sink.warn,
        )
        self._known_good.add(path)
        checkpoint.retain(
            self.saver.directory,
            keep=self.saver.keep,
            best_step=state.best_step,
            known_good=self._known_good,
            report=self.sink.warn,
        )

    def where_saved(self) -> str:
        """The newest checkpoint that is known to be good, for a message."""
        if self._known_good:
            return f"the last good checkpoint is {max(self._known_good)}"
        return "no checkpoint was saved yet"

    def probe(self, state: TrainState, *, is_last: bool, collect: Callable[[], None]) -> TrainState:
        """Run the probes that are due. Weights, optimizer, modes and random state are as before, whatever a probe does."""
        due = [probe for probe in self.probes if probe.due(state.step, is_last)]
        for probe in due:
            try:
                with _untouched(self.model, self.runtime):
                    values = probe.measure(self.model, state.step)
                self.sink.write(probe.name, state.step, values)
            except Exception as error:
                # A run of days must not be lost to a score: the checkpoint is on disk, the failure in the record.
                what = f"the probe {probe.name} failed at step {state.step}: {type(error).__name__}: {error}"
                self.sink.warn(f"{what}; the run goes on, {self.where_saved()}")
                self.sink.write("event", state.step, {"what": what, "traceback": traceback.format_exc()})
                if self.runtime.device.type == "cuda":
                    # It may have run out of memory; what it held must not be missing in the next step.
                    torch.cuda.empty_cache()
                continue
            if 0 < state.step == self._saved_step:
                state = state.scored(values.get("val_bpb"))
        if due:
            collect()
        return state


@contextmanager
def _untouched(model: Any, runtime: Runtime) -> Iterator[None]:
    """No gradients and eval mode inside; modes and random states as they were, after."""
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad(), preserved_rng(runtime.device):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _steady_garbage_collector() -> Iterator[Callable[[], None]]:
    """No automatic collection while inside, but one when the yielded function is called (every probe).

    The collector's full passes over torch's many objects stop a step for some 500 ms (nanochat dev/LOG.md, 2026-02-02).
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()

    def collect() -> None:
        gc.collect()

    try:
        yield collect
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
