"""Begin or resume a run of any stage: settings, the processes, and what must be so before a plan is made."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TypeVar

from firstlight.recipes import record as records
from firstlight.recipes import restart, resume
from firstlight.recipes.plans import horizon_of
from firstlight.recipes.settings import RunSettings
from firstlight.recipes.stage import StageRun
from firstlight.runtime import environment
from firstlight.runtime.console import Console
from firstlight.runtime.context import join, open_runtime
from firstlight.train.guard import naming_lost_peers

COLLECTIVE_TIMEOUT_S = 1800.0
"""After which a process gives up waiting for another. The watchdog is to be earlier: it says where each one stands."""


S = TypeVar("S", bound=RunSettings)


def launch(stage: type[StageRun[S]], settings: S, *, given: frozenset[str] = frozenset()) -> records.RunRecord:
    """Train one stage as ``settings`` say, and return the run's record.

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
        previous = resume.previous_record(settings, runs_dir, recipe=stage.recipe)
        if previous is not None:
            settings, changed = resume.merge_settings(settings, given=given, previous=previous)
            changes += changed
            # Chosen by a measurement when the run began; other matmuls would round differently.
            settings = replace(settings, dtype=previous.dtype)
    with open_runtime(
        device=settings.device, dtype=settings.dtype, num_threads=settings.threads,
        timeout_s=max(COLLECTIVE_TIMEOUT_S, 2 * settings.hang_timeout), joined=joined,
    ) as runtime:  # fmt: skip
        console = Console(is_main=runtime.is_main, is_terminal=environment.is_terminal())
        resume.check_all_see(previous, settings, runs_dir, runtime.control)
        resume.check_begins(previous, settings, runs_dir, given=given)
        if settings.resume and previous is None:
            changes.append(f"--resume: there is no run {settings.run} yet, so it starts now")
        run = stage(settings, runs_dir, runtime, console, previous=previous, started_s=started_s)
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
