"""The recipe of a base run: put the parts together, train, score, report. The only place where they meet.

settings -> plan -> text, tokenizer, tokens -> model, optimizer, loader -> Trainer.fit -> final score, report
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from firstlight.data.loader import Loader
from firstlight.errors import CheckpointError, DataError, FirstlightError, Interrupted, TrainingStopped
from firstlight.eval.bpb import DocumentSums
from firstlight.model import sharding
from firstlight.recipes import preflight, restart, resume
from firstlight.recipes import record as records
from firstlight.recipes.assemble import Parts, assemble, choose_compile, measure_rates
from firstlight.recipes.autobatch import find_device_batch
from firstlight.recipes.core_probe import core_bundle
from firstlight.recipes.keeping import RecordKeeper
from firstlight.recipes.launch_horizon import horizon_of_launch
from firstlight.recipes.plans import horizon_of, plan_from_settings, with_vocabulary_of_tokenizer
from firstlight.recipes.prepare import (
    PreparedData,
    check_amounts,
    describe_source,
    prepare_data_together,
    store_notes,
)
from firstlight.recipes.probe_list import make_probes
from firstlight.recipes.probes import Validation
from firstlight.recipes.profiling import profiled
from firstlight.recipes.restore import restore_newest
from firstlight.recipes.settings import BaseSettings
from firstlight.recipes.sink import RunSink, open_sink
from firstlight.runtime import environment, hardware
from firstlight.runtime.console import Console, format_duration
from firstlight.runtime.context import Runtime, join, open_runtime
from firstlight.train.guard import StopRequest, naming_lost_peers
from firstlight.train.plan import Plan
from firstlight.train.saving import SaveQueue
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState, set_rng_tensors
from firstlight.train.trainer import Guards, Trainer
from firstlight.train.watchdog import Watchdog

COLLECTIVE_TIMEOUT_S = 1800.0
"""After which a process gives up waiting for another. The watchdog is to be earlier: it says where each one stands."""

FIRST_STEP_TIMEOUT_S = 3600.0
"""The first step may compile."""


def train_base(settings: BaseSettings, *, given: frozenset[str] = frozenset()) -> records.RunRecord:
    """Train a base model as ``settings`` say, and return the run's record.

    given: names of the settings that the user wrote (on a resumed run the others keep their saved values).

    Raises ConfigError, DataError or CheckpointError before step 0 for what cannot work; TrainingStopped where a guard
    ended the run; Interrupted after a signal. The run's folder then holds its record and the newest good checkpoint.
    """
    started_s = time.monotonic()
    runs_dir = environment.runs_dir()
    joined = join()
    if joined.attempt == 1 and environment.rank() == 0:
        # Left by an earlier launch that had the same address and port.
        restart.forget_run(runs_dir)
    settings, given, changes = restart.settings_for_attempt(settings, given, runs_dir, attempt=joined.attempt)
    horizon_of(settings)
    previous: records.RunRecord | None = None
    if settings.resume:
        previous = resume.previous_record(settings, runs_dir)
        if previous is not None:
            settings, changed = resume.merge_settings(settings, given=given, previous=previous)
            changes += changed
            # Chosen by a measurement when the run began; other matmuls would round differently.
            settings = replace(settings, dtype=previous.dtype)  # pyrefly: ignore[bad-argument-type]
    with open_runtime(
        device=settings.device, dtype=settings.dtype, num_threads=settings.threads,
        timeout_s=max(COLLECTIVE_TIMEOUT_S, 2 * settings.hang_timeout), joined=joined,
    ) as runtime:  # fmt: skip
        console = Console(is_main=runtime.is_main, is_terminal=environment.is_terminal())
        resume.check_all_see(previous, settings, runs_dir, runtime.control)
        resume.check_begins(previous, settings, runs_dir, given=given)
        if settings.resume and previous is None:
            changes.append(f"--resume: there is no run {settings.run} yet, so it starts now")
        run = _BaseRun(settings, runs_dir, runtime, console, previous=previous, started_s=started_s)
        for sentence in (*runtime.notes, *changes):
            run.note(sentence)
        stop = run.stop
        with stop.watching(), naming_lost_peers(runtime, run.where_saved), stop.at_once(run.where_stopped):
            record = run.run()
        # All have come to the end: a rank that failed now would have to find the run again.
        with naming_lost_peers(runtime, run.where_saved):
            runtime.control.barrier()
        if runtime.is_main:
            restart.forget_run(runs_dir)
        return record


class _BaseRun:
    """One launch of a base run. Methods stand in the order in which they are called."""

    def __init__(
        self,
        settings: BaseSettings,
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

    def run(self) -> records.RunRecord:
        plan = self.make_plan()
        self.run_dir = self.make_run_dir()
        try:
            for sentence in preflight.check_machines(
                plan, self.settings, self.runtime, run_dir=self.run_dir, cache_dir=environment.cache_dir()
            ):
                self.note(sentence)
            self.core = core_bundle(
                self.settings, runtime=self.runtime, cache_dir=environment.cache_dir(), console=self.console
            )
            data = self.prepare(plan)
        except BaseException:
            if self.runtime.is_main and self.previous is None and not any(self.run_dir.iterdir()):
                self.run_dir.rmdir()
            raise
        with data.store:
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

    # Before step 0.

    def make_plan(self) -> Plan:
        settings = with_vocabulary_of_tokenizer(self.settings)
        if self.previous is not None:
            settings = resume.keep_planned(settings, self.previous, world_size=self.runtime.world_size)
        plan = plan_from_settings(settings, runtime=self.runtime)
        self.batch_by_trial = settings.device_batch_size == "auto"
        self.show_plan(plan)
        return plan

    def show_plan(self, plan: Plan) -> None:
        room = preflight.disk_room(self.runs_dir / (self.settings.run or "")) if self.runtime.is_main else 0
        disk = preflight.disk_line(plan, keep=self.settings.keep, world_size=self.runtime.world_size, room_bytes=room)
        self.console.table(
            ["what", "value", "why"], [[line.name, line.value, line.reason] for line in (*plan.lines, disk)]
        )
        self.console.say()

    def make_run_dir(self) -> Path:
        if self.previous is not None:
            # The folder that was named, also where it is a copy that still says another name.
            return self.runs_dir / (self.settings.run or self.previous.name)
        name = ""
        if self.runtime.is_main:
            prefix = records.name_prefix(self.settings.depth, self.settings.data)
            name = records.new_run_dir(self.runs_dir, self.settings.run, prefix=prefix).name
            restart.remember_run(self.runs_dir, name)
        run_dir = self.runs_dir / self.runtime.broadcast_text(name)
        self.console.say(f"run {run_dir}")
        return run_dir

    def prepare(self, plan: Plan) -> PreparedData:
        """Open the data. Several processes share the work of tokenising it, and none waits past a timeout."""
        saved = self.run_dir / "tokenizer.json"
        workers = self.settings.workers if self.settings.workers is not None else environment.num_usable_cpus()
        data = prepare_data_together(
            self.settings.data,
            val=self.settings.val,
            tokenizer_path=saved if self.previous is not None and saved.exists() else self.settings.tokenizer,
            vocab_size=plan.model.vocab_size,
            cache_dir=environment.cache_dir(),
            num_workers=workers,
            seed=self.settings.seed,
            packing=self.settings.packing,
            seq_len=plan.seq_len,
            console=self.console,
            runtime=self.runtime,
        )
        try:
            self.check_data(plan, data)
        except BaseException:
            data.store.close()
            raise
        return data

    def check_data(self, plan: Plan, data: PreparedData) -> None:
        """Refuse data that cannot be trained on, or is not the resumed run's."""
        self.console.say(describe_source(data.source))
        if data.tokenizer.vocab_size != plan.model.vocab_size:
            raise DataError(
                f"the tokenizer has {data.tokenizer.vocab_size} ids and the model {plan.model.vocab_size}",
                hint="remove the run's folder and start it again, or give the right --tokenizer",
            )
        check_amounts(data, seq_len=plan.seq_len)
        options = {"packing": self.settings.packing, "seed": self.settings.seed}
        for sentence in preflight.check_text(plan, data, self.runtime, **options):
            self.note(sentence)
        if self.previous is not None:
            resume.check_identity(
                self.previous, data=self.settings.data, data_hash=data.store.data_hash,
                tokenizer_hash=data.tokenizer.content_hash, kept_in=self.run_dir,
            )  # fmt: skip

    def start_record(self, plan: Plan, data: PreparedData) -> None:
        # What a trial is still to find is not in the record before it: a resumed run would take it for found.
        left_out = {"lines", "model", *(("device_batch_size", "num_micro_batches") if self.batch_by_trial else ())}
        planned = {name: value for name, value in asdict(plan).items() if name not in left_out}
        compiled, why = choose_compile(
            self.settings.compile,
            saved=self.previous.config.get("compiled") if self.previous is not None else None,
            device_type=self.runtime.device.type,
            compiler=environment.cxx_compiler(),
            plan=plan,
            world_size=self.runtime.world_size,
        )
        if self.runtime.largest(float(not compiled)) and compiled:
            compiled, why = False, "no torch.compile: another process cannot"
        self.note(why)
        facts: dict[str, Any] = {
            "status": "running",
            "config": {
                "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()},
                "model": asdict(plan.model),
                "plan": planned,
                "compiled": compiled,
                "val": str(data.val),
            },
            "device": str(self.runtime.device),
            "dtype": self.runtime.dtype_name,
            "world_size": self.runtime.world_size,
            "hardware": hardware.describe(self.runtime.device, num_threads=self.runtime.num_threads),
            "data_hash": data.store.data_hash,
            "tokenizer_hash": data.tokenizer.content_hash,
            "git_commit": environment.git_commit(),
            "versions": environment.versions(),
        }
        # Before the tokenizer's file: a folder that holds anything but a record is refused by the next attempt.
        self.keeper.open(self.run_dir, self.previous, **facts)
        if self.runtime.is_main and not (self.run_dir / "tokenizer.json").exists():
            data.tokenizer.save(self.run_dir / "tokenizer.json")

    # Training.

    def train(self, plan: Plan, data: PreparedData) -> records.RunRecord:
        settings, runtime, console = self.settings, self.runtime, self.console
        parts = assemble(
            plan, runtime, compiled=self.keeper.record.config["compiled"], seed=settings.seed,
            checkpoint_activations=settings.activation_checkpointing, fp8=settings.fp8, shard_weights=settings.shard_weights,
        )  # fmt: skip
        is_sharded = sharding.is_sharded(parts.model)
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
            start = (restore() if self.previous is not None else None) or TrainState()
        except CheckpointError:
            self.keeper.put_back(self.previous)
            raise
        if self.previous is not None and start.step == 0:
            console.say(f"{self.run_dir} has no checkpoint yet: it starts from its first step")
        watchdog = Watchdog(
            settings.hang_timeout, first_deadline_s=max(FIRST_STEP_TIMEOUT_S, 6 * settings.hang_timeout),
            rank=runtime.rank, world_size=runtime.world_size,
            stacks_path=self.run_dir / f"stacks-rank{runtime.rank:05d}.txt", report=Console(is_main=True).warn,
        )  # fmt: skip
        validation = Validation(
            data.store, data.val, data.tokenizer, seq_len=plan.seq_len, batch_rows=plan.device_batch_size,
            runtime=runtime, console=console, hidden=parts.hidden, compiled=parts.compiled,
            beat=watchdog.beat, should_stop=lambda: self.stop.requested, forward_is_collective=is_sharded,
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
            plan, settings, rates, used_s=start.used_s, is_resumed=start.step > 0, num_val_tokens=validation.num_tokens,
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
            loader = stack.enter_context(
                Loader(
                    data.store, tokenizer_bos_id=data.tokenizer.bos_id, val_spec=data.val, packing=settings.packing,
                    seq_len=plan.seq_len, device_batch_size=plan.device_batch_size, seed=settings.seed,
                    rank=runtime.rank, world_size=runtime.world_size, position=start.position, device=runtime.device,
                    vocab_size=plan.model.vocab_size,
                )
            )  # fmt: skip
            probes = make_probes(
                settings, plan, validation, data.tokenizer, console=console, runtime=runtime, core=self.core, in_lockstep=is_sharded,
                beat=watchdog.beat, should_stop=lambda: self.stop.requested,
            )  # fmt: skip
            trainer = Trainer(
                parts.model, parts.optimizer, loader, runtime, horizon,
                num_micro_batches=plan.num_micro_batches, num_step_tokens=plan.total_batch_size,
                num_step_rows=plan.total_batch_size // plan.seq_len,
                saves=stack.enter_context(saves), save_every=plan.save_every, sink=sink, probes=probes,
                hidden=parts.hidden, scaler=parts.scaler, compiled_loss=parts.compiled, documents_of=loader.documents_of,
                guards=Guards(
                    nonfinite_limit=settings.nonfinite_limit, spike=spike,
                    on_spike="rollback" if settings.spike == "rollback" else "skip",
                    check_replicas_every=0 if is_sharded else settings.check_replicas_every, beat=watchdog.beat,
                ),
                stop=self.stop, restore=restore, weights=partial(sharding.saved_weights, parts.model) if is_sharded else None,
            )  # fmt: skip
            if settings.profile and runtime.is_main:
                stack.enter_context(profiled(trainer, self.run_dir / "profile", console=console))
            # Last of all, because compiling draws random numbers. Base training needs none; a probe or a later stage may.
            torch.manual_seed(settings.seed)
            set_rng_tensors(self.rng, runtime.device)
            stack.enter_context(watchdog)
            self.phase = "while training"
            end = trainer.fit(start)
            self.phase = "in the final score, after training"
            sink.finish_steps()
            for sentence in store_notes(data.store):
                self.note(sentence)
            self.finish(parts, validation, sink, end, loss_nats=trainer.last_loss_nats, max_tokens=final_tokens)
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

    def finish(
        self,
        parts: Parts,
        validation: Validation,
        sink: RunSink,
        end: TrainState,
        *,
        loss_nats: float | None,
        max_tokens: int | None,
    ) -> None:
        limit = self.settings.final_documents or None
        sums: list[DocumentSums] = []
        result = validation.score(parts.model, max_documents=limit, max_tokens=max_tokens, documents_to=sums.append)
        validation.keep(self.run_dir, sums[0], step=end.step, data=self.settings.data)
        row = validation.facts(result)
        sink.write("eval", end.step, {**row, "final": True})
        self.console.say(f"final val bpb: {result.describe()} (validation set {validation.content_hash[:12]})")
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
            "final_eval_s": result.elapsed_s,
        }
        self.keeper.save(status="done", val_hash=validation.content_hash, final=final, cost=cost)

    def say_where(self) -> None:
        name, took = self.keeper.record.name, format_duration(time.monotonic() - self.started_s)
        self.console.say(f"done in {took}: {self.run_dir / 'report.html'} and {self.run_dir / 'samples.md'}")
        self.console.say(f'try: firstlight sample {name} -p "The"')
