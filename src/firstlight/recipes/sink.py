"""Where the numbers of a run go: metrics.jsonl, the console, and a tracker where one was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firstlight.model import count
from firstlight.optim.schedule import Hyper
from firstlight.recipes.report_samples import write_samples
from firstlight.runtime.console import Console, StepLine, StepPrinter
from firstlight.runtime.context import Runtime
from firstlight.runtime.metrics import MetricsLog
from firstlight.runtime.trackers import Tracker, open_tracker
from firstlight.train.horizon import ClockHorizon, StepHorizon
from firstlight.train.plan import Plan
from firstlight.train.state import TrainState
from firstlight.train.step import StepStats
from firstlight.train.trainer import mfu, tokens_per_s


class RunSink:
    """The trainer's `Sink`. On ranks above 0 it takes everything and does nothing."""

    def __init__(
        self,
        run_dir: Path,
        metrics: MetricsLog | None,
        tracker: Tracker,
        steps: StepPrinter,
        console: Console,
        *,
        plan: Plan,
        horizon: StepHorizon | ClockHorizon,
        peak_flops_per_s: float,
    ) -> None:
        self._run_dir = run_dir
        self._metrics, self._tracker, self._steps, self._console = metrics, tracker, steps, console
        self._plan, self._horizon, self._peak = plan, horizon, peak_flops_per_s

    def write(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        """One row of the metrics. What the model said is also kept as text, in samples.md."""
        if self._metrics is None or not values:
            return
        self._metrics.write(kind, step, values)
        if kind == "sample":
            try:
                write_samples(self._run_dir)
            except OSError as error:
                self._console.warn(f"samples.md could not be written: {error.strerror or error}")
        if kind != "save":
            # It comes some steps after its own, and trackers take steps in order only.
            self._tracker.log(kind, step, values)

    def show(self, step: int, stats: StepStats, hyper: Hyper, state: TrainState, *, num_tokens: int) -> None:
        """One training step: a row of the metrics, and a line or a moving bar for a person."""
        if self._metrics is None:
            return
        rate = tokens_per_s(num_tokens, stats.elapsed_s)
        flops_per_token = count.flops_per_token(self._plan.model, self._plan.seq_len // hyper.row_parts)
        share = mfu(flops_per_token * num_tokens, stats.elapsed_s, self._peak)
        mean_step_s = state.elapsed_s / state.step
        eta_s = self._horizon.eta_s(state.step, mean_step_s)
        row: dict[str, Any] = {
            "loss_nats": stats.loss_nats,
            "grad_norm": stats.grad_norm,
            "lr_multiplier": hyper.lr_multiplier,
            "momentum": hyper.momentum,
            "step_time_s": stats.elapsed_s,
            "tokens_per_s": rate,
            "mfu": share,
            "num_targets": stats.num_targets,
            "elapsed_s": state.elapsed_s,
            "eta_s": eta_s,
            "epoch": stats.position.epoch,
            "tokens_seen": state.tokens_seen,
        }
        if stats.rank_compute_s:
            row["rank_compute_s"] = list(stats.rank_compute_s)
            row["slowest_rank"] = max(range(len(stats.rank_compute_s)), key=stats.rank_compute_s.__getitem__)
            row["rank_memory_bytes"] = list(stats.rank_memory_bytes)
        if stats.skipped is not None:
            row["skipped"] = stats.skipped
        self.write("train", step, row)
        self._steps.show(
            StepLine(
                step=step,
                num_steps=self._plan.num_steps,
                loss_nats=stats.loss_nats,
                grad_norm=stats.grad_norm,
                lr_multiplier=hyper.lr_multiplier,
                step_time_s=stats.elapsed_s,
                tokens_per_s=rate,
                mfu=share,
                elapsed_s=state.elapsed_s,
                eta_s=eta_s,
                progress_frac=self._horizon.progress(step),
                skipped=stats.skipped,
            )
        )

    def rewind(self, step: int) -> None:
        """Forget the rows of steps from ``step`` on: they will be made again."""
        if self._metrics is not None:
            self._metrics.rewind(step)

    def finish_steps(self) -> None:
        """Show the last step and take the bar away, before what comes after training is said."""
        self._steps.finish()

    def say(self, text: str) -> None:
        self._console.say(text)

    def warn(self, text: str) -> None:
        self._console.warn(text)


@contextmanager
def open_sink(
    run_dir: Path,
    plan: Plan,
    horizon: StepHorizon | ClockHorizon,
    *,
    console: Console,
    runtime: Runtime,
    peak_flops_per_s: float,
    tracker: str | None,
    config: Mapping[str, Any],
    rewind_to: int,
    log_every: int | None,
) -> Iterator[RunSink]:
    """The sink of one launch. Rows at or after step ``rewind_to`` are forgotten: they will be made again.

    Raises ConfigError for a tracker that is not installed.
    """
    # MFU is of all processes' peaks together: num_tokens counts all of them too.
    peak = peak_flops_per_s * runtime.world_size
    metrics = MetricsLog(run_dir / "metrics.jsonl", warn=console.warn) if runtime.is_main else None
    opened = open_tracker(
        tracker if runtime.is_main else None, run_name=run_dir.name, config=config, directory=run_dir, warn=console.warn
    )
    try:
        if metrics is not None:
            if metrics.cut_bytes:
                console.say(f"metrics.jsonl: the last line was cut short by {metrics.cut_bytes} bytes and is dropped")
            if removed := metrics.rewind(rewind_to):
                console.say(f"metrics.jsonl: {removed} steps from step {rewind_to} on will be made again")
        with console.training(plan.num_steps, every_steps=log_every) as steps:
            yield RunSink(run_dir, metrics, opened, steps, console, plan=plan, horizon=horizon, peak_flops_per_s=peak)
    finally:
        opened.finish()
        if metrics is not None:
            metrics.close()
