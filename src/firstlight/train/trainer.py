"""The one loop: save, probe, step, log. Every stage is this loop with other weights, batches, plan and probes.

At each step boundary, in this order: what happened to the saves before, the ranks' agreement on stopping, a comparison of
the ranks' weights where one is due, a checkpoint where one is due (before anything that could fail), then the probes that
are due, then one update. Probes never change what is trained and never end a run.

``step`` counts the steps done. So metrics row ``step`` is the update from ``step`` to ``step + 1``, and a checkpoint or a
probe at ``step`` is of the weights after ``step`` steps. Whoever goes on from the checkpoint of ``step`` first cuts the
metrics back to the rows before it (`MetricsLog.rewind`); the loop then makes the others again, each once.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

from firstlight.data.batch import Batch, Position
from firstlight.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingStopped
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime import hardware
from firstlight.runtime.context import Runtime
from firstlight.train import guard, replicas
from firstlight.train.probing import Probe, Probing
from firstlight.train.saving import Outcome, SaveQueue
from firstlight.train.scaler import LossScaler
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState, rng_tensors
from firstlight.train.step import StepStats, TrainableModel, train_step
from firstlight.train.watchdog import FIRST_STEP

MOST_ROLLBACKS = 3
"""Times that a run goes back from a spike before it stops instead."""


class Horizon(Protocol):
    """When the run ends, and the numbers of each update; see `firstlight.train.horizon`. Every rank gets the same answers."""

    def hyper(self, step: int) -> Hyper: ...
    def is_done(self, step: int) -> bool: ...
    def used_s(self) -> float: ...


class SavableModel(TrainableModel, Protocol):
    """What the loop needs of a model besides what a step does: its weights by name, and its mode."""

    def state_dict(self) -> Mapping[str, torch.Tensor]: ...
    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class Sink(Protocol):
    """Where numbers go: `write` for rows of the metrics, `show` for the step that a person watches.

    ``rewind`` forgets the rows of steps from ``step`` on, which will be made again.
    """

    def write(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None: ...
    def show(self, step: int, stats: StepStats, hyper: Hyper, state: TrainState, *, num_tokens: int) -> None: ...
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def rewind(self, step: int) -> None: ...


@dataclass(frozen=True)
class Guards:
    """What watches over a run besides the refusal of numbers that are not finite; by default nothing does.

    nonfinite_limit: refused updates in a row that end the run (0: none do).
    spike, on_spike: who judges the losses, and whether a spike's update is left out (``skip``) or training goes back to the
        newest good checkpoint and passes over the rows since then (``rollback``).
    check_replicas_every: steps between comparisons of the ranks' weights (0: never).
    beat: told what begins; see `Watchdog.beat`.
    """

    nonfinite_limit: int = 5
    spike: SpikeGuard | None = None
    on_spike: Literal["skip", "rollback"] = "skip"
    check_replicas_every: int = 0
    beat: Callable[[str], None] = lambda phase: None


class Trainer:
    """Everything that a run needs, and `fit`.

    batches: endless micro-batches of this rank. num_micro_batches: of each update. num_step_rows: rows of one update over
    all ranks. documents_of: names the documents of a range of rows, for the report of a refused update. hidden: ``model.hidden`` or its compiled form. nonfinite_limit: refused updates in a row that end the
    run (0: none do).
    """

    def __init__(
        self,
        model: SavableModel,
        optimizer: MuonAdamW,
        batches: Iterator[Batch],
        runtime: Runtime,
        horizon: Horizon,
        *,
        num_micro_batches: int,
        num_step_rows: int,
        saves: SaveQueue,
        save_every: int,
        sink: Sink,
        probes: Sequence[Probe] = (),
        hidden: Callable[[torch.Tensor], torch.Tensor] | None = None,
        scaler: LossScaler | None = None,
        compiled_loss: bool = False,
        documents_of: Callable[[Position, int], list[str]] | None = None,
        guards: Guards | None = None,
        stop: guard.StopRequest | None = None,
        weights: Callable[[], tuple[Mapping[str, torch.Tensor], Mapping[str, tuple[int, ...]]]] | None = None,
        restore: Callable[[], TrainState | None] | None = None,
    ) -> None:
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.runtime, self.horizon, self.num_micro_batches = runtime, horizon, num_micro_batches
        self.num_step_rows = num_step_rows
        self.saves, self.save_every = saves, save_every
        self.sink = sink
        self.hidden, self.scaler, self.compiled_loss = hidden, scaler, compiled_loss
        self.documents_of = documents_of
        self.guards = guards or Guards()
        self.stop = stop or guard.StopRequest(runtime, report=sink.warn)
        self.weights = weights or self._replicated_weights
        self.restore = restore
        self.probing = Probing(
            probes, runtime=runtime, sink=sink, where_saved=self.where_saved, beat=self.guards.beat,
            begun_path=saves.directory.parent / "probes-begun.json",
        )  # fmt: skip
        self.last_loss_nats: float | None = None
        self._saved_step = 0
        self._checked_step = -1
        self._lost_steps: set[int] = set()
        self._is_first_step = True
        self._save_problem: CheckpointError | None = None

    def fit(self, state: TrainState) -> TrainState:
        """Train from ``state`` to the end of the horizon and return the last state.

        A state beyond step 0 is taken to come from its checkpoint in the saver's directory, so it is not saved again.

        Raises ConfigError for a run without a step; Interrupted after a signal (a checkpoint is saved first);
        TrainingStopped where too many updates in a row were refused, where the ranks' weights are no longer the same, or
        where another rank has ended; DataError where the data ends or is damaged (with one process a checkpoint is saved
        first); CheckpointError where the last checkpoint cannot be saved (after the probes).
        """
        if state.step == 0 and self.horizon.is_done(0):
            raise ConfigError("this run would end before its first step", hint="give it a longer horizon")
        self._saved_step = state.step
        try:
            with self.stop.watching(), _steady_garbage_collector() as collect:
                return self._loop(state, collect)
        except guard.Now:
            # It came after the ranks last agreed; `at_once` around the run leaves word and says which signal and where.
            raise
        except KeyboardInterrupt:
            self.runtime.leave_word(f"{guard.STOPPED_BY}SIGINT")
            self.saves.give_up()
            raise Interrupted(f"stopped at once; {self.where_saved()}", hint="go on with --resume") from None

    def _loop(self, state: TrainState, collect: Callable[[], None]) -> TrainState:
        while True:
            self.guards.beat("waiting for the other processes")
            self._report(self.saves.finished())
            if state.best_step in self._lost_steps:
                # The score stands in the metrics; the next one with a checkpoint is the best again.
                state = replace(state, best_bpb=None, best_step=None)
            is_last = self.horizon.is_done(state.step)
            signal_name = self.stop.agreed()
            is_saved = signal_name or is_last or self._due(state.step, self.save_every)
            if is_saved or self._due(state.step, self.guards.check_replicas_every):
                self._check_replicas(state.step)
            if is_saved:
                self.save(state)
            if signal_name:
                self.finish_saving()
                self.sink.write("event", state.step, {"what": f"stopped by {signal_name}"})
                stopped = Interrupted(
                    f"stopped by {signal_name} after {state.step} steps, {self.where_saved()}",
                    hint="go on with the same command and --resume",
                )
                stopped.is_same_on_all_ranks = True
                raise stopped
            try:
                with self.stop.droppable():
                    state = self.probe(state, is_last=is_last, collect=collect)
            except guard.Dropped:
                continue
            if is_last:
                break
            state = self.advance(state)
        self.finish_saving()
        if self._save_problem is not None:
            raise CheckpointError(
                f"training is done, but {self._save_problem.what}; {self.where_saved()}",
                hint=f"{self._save_problem.hint}; then --resume does the steps since then again",
            )
        return state

    @staticmethod
    def _due(step: int, every: int) -> bool:
        return every > 0 and step > 0 and step % every == 0

    def _check_replicas(self, step: int) -> None:
        """Before a save too: a checkpoint must not depend on which rank's weights are taken."""
        if self.guards.check_replicas_every == 0 or self.runtime.world_size == 1 or step == self._checked_step:
            return
        self._checked_step = step
        differences = replicas.find_differences(self.model.named_parameters(), self.runtime)
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            what = f"the processes' weights are no longer the same before step {step}: "
            what += f"{'; '.join(differences[:3])}{more}"
            self.sink.write("event", step, {"what": what, "tensors": differences})
            raise TrainingStopped(
                what,
                hint=f"a faulty device or memory is likely; {self.where_saved()}. Go on with --resume, on other devices",
            )

    def advance(self, state: TrainState) -> TrainState:
        """One update: micro-batches in, a new state and a row of the metrics out."""
        self.guards.beat(FIRST_STEP if self._is_first_step else f"step {state.step}")
        self._is_first_step = False
        hyper = self.horizon.hyper(state.step)
        spike = self.guards.spike
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
                refuse=spike.judge if spike else None,
            )
        except DataError:
            # It comes between micro-batches, before the update: the weights are still those of this state. With several
            # processes this may be the only one that cannot go on, and a save needs all.
            if self.runtime.world_size == 1:
                self.save(state)
                self.finish_saving()
            raise
        if self.runtime.world_size > 1:
            stats = self._with_all_ranks(stats)
        if spike and stats.skipped is None:
            spike.accept(stats.loss_nats)
        before = state
        lowered = self.scaler is not None and self.scaler.scale != scale
        state = state.after(stats, num_tokens=stats.num_tokens, mended=lowered)
        self.last_loss_nats = stats.loss_nats
        self.sink.show(before.step, stats, hyper, state, num_tokens=stats.num_tokens)
        if stats.skipped is not None:
            documents = self._tell_refusal(before, stats)
            if stats.is_spike and self.guards.on_spike == "rollback":
                return self._rolled_back(state, reason=stats.skipped, documents=documents)
            if not stats.is_spike:
                last_good = self.where_saved()
                limit = self.guards.nonfinite_limit
                guard.check_skips(state, limit=limit, reason=stats.skipped, last_good=last_good)
        return state

    def _with_all_ranks(self, stats: StepStats) -> StepStats:
        """With each rank's own time and memory, so that the slowest is seen."""
        memory_bytes = hardware.memory_in_use_bytes(self.runtime.device)
        by_rank = self.runtime.control.gather_numbers([stats.compute_s, float(memory_bytes)])
        times_s, sizes = zip(*by_rank, strict=True)
        return replace(stats, rank_compute_s=times_s, rank_memory_bytes=tuple(int(size) for size in sizes))

    def _tell_refusal(self, before: TrainState, stats: StepStats) -> list[str]:
        if stats.is_empty:
            # The step's own row says so; nothing is wrong with its documents.
            return []
        documents = self.documents_of(before.position, self.num_step_rows) if self.documents_of else []
        self.sink.write("event", before.step, {"what": f"update refused: {stats.skipped}", "documents": documents})
        named = f"; documents: {', '.join(documents[:3])}{' ...' * (len(documents) > 3)}" if documents else ""
        self.sink.warn(f"step {before.step}: update refused ({stats.skipped}), weights unchanged{named}")
        return documents

    def _rolled_back(self, state: TrainState, *, reason: str, documents: list[str]) -> TrainState:
        """The newest checkpoint's weights, with the data that comes after ``state``: what led to the spike is passed over."""
        self.finish_saving()
        if state.num_rollbacks >= MOST_ROLLBACKS:
            raise TrainingStopped(
                f"the loss has spiked again after {state.num_rollbacks} rollbacks, the last time at step {state.step - 1}",
                hint=f"{self.where_saved()}. Look at the documents named in metrics.jsonl; go on with --spike skip, or start another run with lower rates",
            )
        self.guards.beat("going back to a checkpoint")
        restored = self.restore() if self.restore else None
        if restored is None:
            self.sink.warn(f"step {state.step - 1}: there is no checkpoint to go back to yet; the update is left out")
            return state
        num_rows = state.position.rows_consumed - restored.position.rows_consumed
        what = f"rolled back from step {state.step} to {restored.step}; {num_rows:,} rows of data are passed over"
        self.sink.warn(what)
        self.sink.rewind(restored.step)
        # The row of the refusal is forgotten with the others. Rows of kind run stay, also where it goes back here once more.
        facts = {"what": f"{what}: {reason}", "num_rows_passed_over": num_rows, "documents": documents}
        self.sink.write("run", restored.step, facts)
        self._saved_step = self._checked_step = restored.step
        return replace(
            restored,
            position=state.position,
            used_s=state.used_s,
            elapsed_s=state.elapsed_s,
            num_skipped=state.num_skipped,
            num_rollbacks=state.num_rollbacks + 1,
        )

    def _micro_batches(self, step: int) -> Iterator[Batch]:
        for _ in range(self.num_micro_batches):
            batch = next(self.batches, None)
            if batch is None:
                raise DataError(f"the data ended after {step} steps", hint="allow more epochs, or train for less")
            yield batch

    def save(self, state: TrainState) -> None:
        """Begin a checkpoint of ``state``. One that fails is reported; the run and the checkpoints before it live on."""
        if state.step == self._saved_step:
            return
        self.guards.beat(f"saving step {state.step}")
        model, shapes = self.weights()
        values = {
            "step": state.step,
            "train": replace(state, used_s=self.horizon.used_s()).to_dict(),
            "num_updates": self.optimizer.num_updates,
            "scaler": self.scaler.state() if self.scaler else None,
            "spike": self.guards.spike.state() if self.guards.spike else None,
        }
        self.saves.start(
            step=state.step,
            model=model,
            optimizer=self.optimizer.state_tensors(),
            shapes={**shapes, **self.optimizer.state_shapes()},
            state=values,
            rng=rng_tensors(self.runtime.device) if self.runtime.is_main else None,
            best_step=state.best_step,
        )
        self._saved_step = state.step
        self._save_problem = None

    def _replicated_weights(self) -> tuple[Mapping[str, torch.Tensor], Mapping[str, tuple[int, ...]]]:
        return (self.model.state_dict() if self.runtime.is_main else {}), {}

    def finish_saving(self) -> None:
        """Wait until the checkpoint that is being written is on disk, or has failed. All ranks know then which it is."""
        self.guards.beat("waiting for a checkpoint to be written")
        self._report(self.saves.wait())

    def _report(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.error is None:
                self._lost_steps.discard(outcome.step)
                took = {"copy_s": outcome.copy_s, "waited_s": outcome.waited_s, "write_s": outcome.write_s}
                self.sink.write("save", outcome.step, {**took, "bytes": outcome.num_bytes})
                continue
            self._lost_steps.add(outcome.step)
            if outcome.step == self._saved_step:
                self._save_problem = outcome.error
            self.sink.warn(f"{outcome.error}\n  training goes on; {self.where_saved()}")
            self.sink.write("event", outcome.step, {"what": f"save failed: {outcome.error.what}"})

    def where_saved(self) -> str:
        """The newest checkpoint that is known to be good, for a message."""
        return self.saves.where_saved()

    def probe(self, state: TrainState, *, is_last: bool, collect: Callable[[], None]) -> TrainState:
        """Run the probes that are due. Weights, optimizer, modes and random state are as before, whatever a probe does."""
        is_saved = 0 < state.step == self._saved_step
        return self.probing.run(self.model, state, is_last=is_last, is_saved=is_saved, collect=collect)


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
