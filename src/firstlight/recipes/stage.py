"""One launch of a run, whichever its stage: plan, data, model, optimizer, batches, `Trainer.fit`, final score, report.

A stage is initial weights, batches, plan and probes. `base.py`, `mid.py`, `sft.py` and `rl.py` say what theirs are: each has
a class of a run that fills in `StageRun`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from firstlight.data.batch import Batch, Position
from firstlight.errors import CheckpointError, FirstlightError, Interrupted, TrainingStopped
from firstlight.eval.bpb import DocumentSums
from firstlight.model import sharding
from firstlight.recipes import preflight, restart, resume
from firstlight.recipes import record as records
from firstlight.recipes.assemble import Parts, assemble, choose_compile, choose_native, has_native_layers, measure_rates
from firstlight.recipes.autobatch import find_device_batch
from firstlight.recipes.keeping import RecordKeeper
from firstlight.recipes.launch_horizon import horizon_of_launch
from firstlight.recipes.probes import Validation
from firstlight.recipes.profiling import profiled
from firstlight.recipes.restore import restore_newest
from firstlight.recipes.settings import RunSettings
from firstlight.recipes.sink import RunSink, open_sink
from firstlight.runtime import environment, hardware
from firstlight.runtime.console import Console, format_duration
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.document import Document
from firstlight.train.guard import StopRequest, naming_lost_peers
from firstlight.train.plan import Plan
from firstlight.train.probing import Probe
from firstlight.train.saving import SaveQueue
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState, set_rng_tensors
from firstlight.train.trainer import Guards, Trainer
from firstlight.train.watchdog import Watchdog

FIRST_STEP_TIMEOUT_S = 3600.0
"""The first step may compile."""

S = TypeVar("S", bound=RunSettings)


class BatchSource(Protocol):
    """Endless micro-batches of this rank, and the names of what is in the rows after a position."""

    def __next__(self) -> Batch: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def documents_of(self, position_before: Position, num_rows: int) -> list[str]: ...


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and is scored on.

    val: how the validation documents were chosen, in words. documents, val_hash: these, with their loss masks, and their
    identity by content; may wait for what is still being built.
    open_batches: from a position on. notes: sentences for the record, after training. close: ends what still works for it.
    """

    tokenizer: Tokenizer
    data_hash: str
    val: str
    documents: Callable[[], list[Document]]
    val_hash: Callable[[], str]
    open_batches: Callable[[Plan, Parts, Position], AbstractContextManager[BatchSource]]
    notes: Callable[[], list[str]] = list
    close: Callable[[], None] = lambda: None


class StageRun(ABC, Generic[S]):
    """One launch of a stage. Methods stand in the order in which they are called; the abstract ones are the stage's own.

    recipe: the stage's name. parents: names of the runs that this one started from.
    """

    recipe: ClassVar[str]
    parents: tuple[str, ...] = ()

    def __init__(
        self,
        settings: S,
        runs_dir: Path,
        runtime: Runtime,
        console: Console,
        *,
        previous: records.RunRecord | None,
        started_s: float,
    ) -> None:
        self.settings = settings
        self.runs_dir = runs_dir
        self.runtime = runtime
        self.console = console
        self.previous = previous
        self.started_s = started_s
        self.keeper = RecordKeeper(runtime, console)
        self.note = self.keeper.note
        self.rng: dict[str, torch.Tensor] = {}
        self.stop = StopRequest(runtime, report=console.warn)
        self.saves: SaveQueue | None = None
        self.phase = "while preparing"

    def where_stopped(self) -> str:
        """What a signal outside the training steps has interrupted, and what is left, in words."""
        return f"{self.phase}; {self.where_saved()}"

    def where_saved(self) -> str:
        """What a run can go on from, in words."""
        if self.saves is not None:
            return self.saves.where_saved()
        return "nothing was trained yet" if self.previous is None else "what was saved before is untouched"

    def release(self) -> None:
        """End what was started for data that is not there yet, because preparing has failed."""

    def run(self) -> records.RunRecord:
        try:
            plan = self.make_plan()
            self.batch_by_trial = self.settings.device_batch_size == "auto"
            self.show_plan(plan)
            self.run_dir = self.make_run_dir()
            data = self.prepare_in_run_dir(plan)
        except BaseException:
            self.release()
            raise
        try:
            self.start_record(plan, data)
            try:
                # Here too, so that the record says what the user is told.
                with naming_lost_peers(self.runtime, self.where_saved), self.stop.at_once(self.where_stopped):
                    return self.train(plan, data)
            except (Interrupted, TrainingStopped) as error:
                self.keeper.close("stopped", f"ended: {error.what}")
                raise
            except FirstlightError as error:
                self.keeper.close("failed", f"ended: {error.what}")
                raise
            except BaseException as error:
                self.keeper.close("failed", f"ended: {type(error).__name__}: {error}")
                raise
        finally:
            data.close()

    def prepare_in_run_dir(self, plan: Plan) -> StageData:
        """`prepare`, after the last checks of the machines; where it fails, no empty folder is left."""
        try:
            for sentence in preflight.check_machines(
                plan, self.settings, self.runtime, run_dir=self.run_dir, cache_dir=environment.cache_dir()
            ):
                self.note(sentence)
            return self.prepare(plan)
        except BaseException:
            if self.runtime.is_main and self.previous is None and not any(self.run_dir.iterdir()):
                self.run_dir.rmdir()
            raise

    # Before step 0.

    @abstractmethod
    def make_plan(self) -> Plan:
        """Every number of the run, from the settings and the machine. Raises ConfigError for all mistakes at once."""

    def show_plan(self, plan: Plan) -> None:
        room = preflight.disk_room(self.runs_dir / (self.settings.run or "")) if self.runtime.is_main else 0
        disk = preflight.disk_line(plan, keep=self.settings.keep, world_size=self.runtime.world_size, room_bytes=room)
        self.console.table(
            ["what", "value", "why"], [[line.name, line.value, line.reason] for line in (*plan.lines, disk)]
        )
        self.console.say()

    @abstractmethod
    def name_prefix(self) -> str:
        """Begin of the run's name where none was given."""

    def make_run_dir(self) -> Path:
        if self.previous is not None:
            # The folder that was named, also where it is a copy that still says another name.
            return self.runs_dir / (self.settings.run or self.previous.name)
        name = ""
        if self.runtime.is_main:
            name = records.new_run_dir(self.runs_dir, self.settings.run, prefix=self.name_prefix()).name
            restart.remember_run(self.runs_dir, name)
        run_dir = self.runs_dir / self.runtime.broadcast_text(name)
        self.console.say(f"run {run_dir}")
        return run_dir

    @abstractmethod
    def prepare(self, plan: Plan) -> StageData:
        """Open the data. Raises DataError for what cannot be trained on, or is not the resumed run's."""

    def check_identity(self, *, data: str, data_hash: str, tokenizer_hash: str) -> None:
        """Refuse data or a tokenizer that are not those of the resumed run."""
        if self.previous is not None:
            resume.check_identity(
                self.previous, data=data, data_hash=data_hash, tokenizer_hash=tokenizer_hash, kept_in=self.run_dir
            )

    def extra_config(self) -> dict[str, Any]:
        """What else the record of this stage says of its making."""
        return {}

    def start_record(self, plan: Plan, data: StageData) -> None:
        # What a trial is still to find is not in the record before it: a resumed run would take it for found.
        left_out = {"lines", "model", *(("device_batch_size", "num_micro_batches") if self.batch_by_trial else ())}
        planned = {name: value for name, value in asdict(plan).items() if name not in left_out}
        before = self.previous.config if self.previous is not None else None
        compiled, why = choose_compile(
            self.settings.compile,
            saved=before.get("compiled") if before is not None else None,
            device_type=self.runtime.device.type,
            compiler=environment.cxx_compiler(),
            has_native_layers=has_native_layers(device_type=self.runtime.device.type, dtype=self.runtime.compute_dtype),
            plan=plan,
            world_size=self.runtime.world_size,
        )
        if self.runtime.largest(float(not compiled)) and compiled:
            compiled, why = False, "no torch.compile: another process cannot"
        self.note(why)
        native, changed = choose_native(
            saved=before.get("native", False) if before is not None else None,
            device_type=self.runtime.device.type, dtype=self.runtime.compute_dtype,
        )  # fmt: skip
        if changed is not None:
            self.console.warn(changed)
        facts: dict[str, Any] = {
            "recipe": self.recipe,
            "status": "running",
            "config": {
                "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()},
                "model": asdict(plan.model),
                "plan": planned,
                "compiled": compiled,
                "native": native if before is None else before.get("native", False),
                "val": data.val,
                **self.extra_config(),
            },
            "device": str(self.runtime.device),
            "dtype": self.runtime.dtype_name,
            "world_size": self.runtime.world_size,
            "hardware": hardware.describe(self.runtime.device, num_threads=self.runtime.num_threads),
            "data_hash": data.data_hash,
            "tokenizer_hash": data.tokenizer.content_hash,
            "parents": self.parents,
            "git_commit": environment.git_commit(),
            "versions": environment.versions(),
        }
        # Before the tokenizer's file: a folder that holds anything but a record is refused by the next attempt.
        self.keeper.open(self.run_dir, self.previous, **facts)
        if self.runtime.is_main and not (self.run_dir / "tokenizer.json").exists():
            data.tokenizer.save(self.run_dir / "tokenizer.json")

    # Training.

    def load_start(self, parts: Parts) -> None:
        """Fill the model with the weights that the stage starts from."""

    @abstractmethod
    def make_probes(
        self, plan: Plan, data: StageData, parts: Parts, sink: RunSink, *, beat: Callable[[str], None]
    ) -> list[Probe]:
        """What is measured on the way, in this order at a step. beat: see `Watchdog.beat`."""

    def train(self, plan: Plan, data: StageData) -> records.RunRecord:
        settings, runtime, console = self.settings, self.runtime, self.console
        parts = assemble(
            plan, runtime, compiled=self.keeper.record.config["compiled"], seed=settings.seed,
            checkpoint_activations=settings.activation_checkpointing, fp8=settings.fp8, shard_weights=settings.shard_weights,
        )  # fmt: skip
        self.is_sharded = sharding.is_sharded(parts.model)
        for sentence in parts.notes:
            self.note(sentence)
        if self.batch_by_trial:
            plan = self.find_batch(plan, parts)
        peak = hardware.device_peak(runtime.device, runtime.compute_dtype)
        saves = self.saves = SaveQueue(
            self.run_dir / "checkpoints", keep=settings.keep, channel=runtime.background,
            asynchronous=settings.async_save, report=console.warn,
        )  # fmt: skip
        spike = SpikeGuard() if settings.spike != "off" else None

        restore = partial(self.restore, parts, saves, spike)
        try:
            start = restore() if self.previous is not None else None
        except CheckpointError:
            self.keeper.put_back(self.previous)
            raise
        if start is None:
            self.load_start(parts)
            start = TrainState()
        if self.previous is not None and start.step == 0:
            console.say(f"{self.run_dir} has no checkpoint yet: it starts from its first step")
        watchdog = Watchdog(
            settings.hang_timeout, first_deadline_s=max(FIRST_STEP_TIMEOUT_S, 6 * settings.hang_timeout),
            rank=runtime.rank, world_size=runtime.world_size,
            stacks_path=self.run_dir / f"stacks-rank{runtime.rank:05d}.txt", report=Console(is_main=True).warn,
        )  # fmt: skip
        self.validation = Validation(
            data.documents, data.val_hash, data.tokenizer, val=data.val, seq_len=plan.seq_len,
            batch_rows=plan.device_batch_size, runtime=runtime, console=console, hidden=parts.hidden, compiled=parts.compiled,
            beat=watchdog.beat, should_stop=lambda: self.stop.requested, forward_is_collective=self.is_sharded,
        )  # fmt: skip
        rates = None
        if parts.compiled or plan.num_steps is None:
            with console.progress("compiling and measuring" if parts.compiled else "measuring"):
                rates = measure_rates(parts, plan, runtime)
        # Once more after some time: another program's load passes, the machine's peak does not.
        again = hardware.device_peak(runtime.device, runtime.compute_dtype)
        peak = max(peak, again, key=lambda measured: measured.flops_per_s)
        self.note(f"peak {peak.flops_per_s / 1e9:,.0f} GFLOP/s a process ({peak.source})")
        horizon, final_tokens, plan, notes = horizon_of_launch(
            plan, settings, rates, used_s=start.used_s, is_resumed=start.step > 0, num_val_tokens=self.validation.num_tokens,
            spent_s=lambda: time.monotonic() - self.started_s, runtime=runtime,
        )  # fmt: skip
        for sentence in notes:
            self.note(sentence)
        self.keeper.save()
        with ExitStack() as stack:
            sink = stack.enter_context(
                open_sink(
                    self.run_dir, plan, horizon, console=console, runtime=runtime, peak_flops_per_s=peak.flops_per_s,
                    tracker=settings.tracker, config=self.keeper.record.config, rewind_to=start.step,
                    log_every=settings.log_every,
                )
            )  # fmt: skip
            sink.write("run", start.step, {"what": "resumed" if start.step else "started"})
            self.sink, self.beat = sink, watchdog.beat
            batches = stack.enter_context(data.open_batches(plan, parts, start.position))
            trainer = Trainer(
                parts.model, parts.optimizer, batches, runtime, horizon,
                num_micro_batches=plan.num_micro_batches,
                num_step_rows=plan.total_batch_size // plan.seq_len,
                saves=stack.enter_context(saves), save_every=plan.save_every, sink=sink,
                probes=self.make_probes(plan, data, parts, sink, beat=watchdog.beat),
                hidden=parts.hidden, scaler=parts.scaler, compiled_loss=parts.compiled, documents_of=batches.documents_of,
                guards=Guards(
                    nonfinite_limit=settings.nonfinite_limit, spike=spike,
                    on_spike="rollback" if settings.spike == "rollback" else "skip",
                    check_replicas_every=0 if self.is_sharded else settings.check_replicas_every, beat=watchdog.beat,
                ),
                stop=self.stop, restore=restore,
                weights=partial(sharding.saved_weights, parts.model) if self.is_sharded else None,
            )  # fmt: skip
            if settings.profile and runtime.is_main:
                stack.enter_context(profiled(trainer, self.run_dir / "profile", console=console))
            # Last of all, because compiling draws random numbers. Training needs none; a probe or a later stage may.
            torch.manual_seed(settings.seed)
            set_rng_tensors(self.rng, runtime.device)
            stack.enter_context(watchdog)
            self.phase = "while training"
            end = trainer.fit(start)
            self.phase = "in the final score, after training"
            sink.finish_steps()
            for sentence in data.notes():
                self.note(sentence)
            self.finish(parts, data, sink, end, loss_nats=trainer.last_loss_nats, max_tokens=final_tokens)
        self.keeper.write_report()
        self.say_where()
        return self.keeper.record

    def find_batch(self, plan: Plan, parts: Parts) -> Plan:
        """The plan with the largest micro-batch that fits, also in the record: a resumed run keeps it."""
        plan, found = find_device_batch(parts, plan, self.runtime)
        self.note(found)
        config = self.keeper.record.config
        changed = {"device_batch_size": plan.device_batch_size, "num_micro_batches": plan.num_micro_batches}
        self.keeper.save(config={**config, "plan": {**config["plan"], **changed}})
        return plan

    def restore(self, parts: Parts, saves: SaveQueue, spike: SpikeGuard | None) -> TrainState | None:
        """State of the newest good checkpoint, with all else of it loaded; None where there is none."""
        restored = restore_newest(saves.directory, parts, runtime=self.runtime, console=self.console, spike=spike)
        if restored is None:
            return None
        self.rng = restored.rng
        saves.note_good(restored.path)
        self.console.say(f"resumed from {restored.path}")
        return restored.state

    # After the last step. The checkpoint is on disk by now.

    def score_end(
        self, parts: Parts, data: StageData, sink: RunSink, end: TrainState, *, max_tokens: int | None
    ) -> dict[str, Any]:
        """The final numbers for the record, also written to the metrics. A collective call."""
        limit = getattr(self.settings, "final_documents", 0) or None
        sums: list[DocumentSums] = []
        validation = self.validation
        result = validation.score(parts.model, max_documents=limit, max_tokens=max_tokens, documents_to=sums.append)
        validation.keep(self.run_dir, sums[0], step=end.step, data=getattr(self.settings, "data", ""))
        row = validation.facts(result)
        sink.write("eval", end.step, {**row, "final": True})
        self.console.say(f"final val bpb: {result.describe()} (validation set {validation.content_hash[:12]})")
        return row

    def finish(
        self,
        parts: Parts,
        data: StageData,
        sink: RunSink,
        end: TrainState,
        *,
        loss_nats: float | None,
        max_tokens: int | None,
    ) -> None:
        scoring_began_s = time.monotonic()
        row = self.score_end(parts, data, sink, end, max_tokens=max_tokens)
        sink.write("run", end.step, {"what": "done"})
        final = {
            **row,
            "steps": end.step,
            "tokens": end.tokens_seen,
            "train_loss_nats": loss_nats,
            "num_skipped": end.num_skipped,
            "peak_rss_bytes": hardware.peak_rss_bytes(),
        }
        cost = {
            "elapsed_s": self.keeper.record.cost.get("elapsed_s", 0.0) + time.monotonic() - self.started_s,
            "train_s": end.elapsed_s,
            "final_eval_s": time.monotonic() - scoring_began_s,
        }
        self.keeper.save(status="done", val_hash=data.val_hash(), final=final, cost=cost)

    @abstractmethod
    def next_step(self) -> str:
        """A command to try with the run that is done."""

    def say_where(self) -> None:
        took = format_duration(time.monotonic() - self.started_s)
        self.console.say(f"done in {took}: {self.run_dir / 'report.html'} and {self.run_dir / 'samples.md'}")
        self.console.say(f"try: {self.next_step()}")
