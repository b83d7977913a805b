"""Run what is left of a study, cell by cell, and write its results after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from firstlight.errors import ConfigError, FirstlightError, Interrupted
from firstlight.recipes.scale.cell import StopSignals, command_of, run_in_process, settings_of
from firstlight.recipes.scale.reading import headline, read_study_in_words
from firstlight.recipes.scale.report import write_page
from firstlight.recipes.scale.results import StudyResults, results_of, to_json
from firstlight.recipes.scale.study import (
    LOGS,
    REPORT_FILE,
    RESULTS_FILE,
    Outcome,
    Study,
    outcome_of,
    outcomes_of,
    with_launch,
    write_json,
    write_study,
)  # fmt: skip
from firstlight.runtime.console import Console, format_duration

SAME_FOR_ALL = (2, 3)
"""Exit codes of a mistake in the settings or the text: every other cell would meet it too."""

RunCell = Callable[..., int]


def run_study(
    study: Study, *, runs_dir: Path, console: Console, started_s: float, run_cell: RunCell = run_in_process
) -> StudyResults:
    """Run the cells that are not done, in the plan's order, and return the results. A cell that was interrupted goes on.

    A cell that fails is named and the study goes on with the next; one that fails for what all cells share ends it.
    started_s: time.monotonic() at the launch. run_cell: as `run_in_process`.

    Raises Interrupted after a signal (the running cell has saved), ConfigError where a cell is being trained by another
    process, FirstlightError where nothing more can be done.
    """
    study_dir = runs_dir / study.name
    console.say(f"study {study_dir}")
    stop = StopSignals()
    failed: list[Outcome] = []
    try:
        with stop.watching():
            for number, cell in enumerate(study.cells, 1):
                outcome = outcome_of(cell, runs_dir)
                if outcome.is_done:
                    console.say(f"{_place(study, number)} {_ended(outcome)} (already there)")
                    continue
                if outcome.status == "running":
                    raise ConfigError(
                        f"{cell.run} is being trained by another process",
                        hint="wait until it ends, or end that one first",
                    )
                outcome = _run_one(study, number, outcome, runs_dir, console, stop, run_cell)
                if stop.requested:
                    raise Interrupted(
                        f"{stop.requested} while {cell.run} was trained: {sum(o.is_done for o in outcomes_of(study, runs_dir))} "
                        f"of {len(study.cells)} cells are done",
                        hint=f"go on with: firstlight scale --name {study.name} --resume",
                    )
                if not outcome.is_done:
                    failed.append(outcome)
                    continue
                left_s = sum(c.expected_s for c in study.cells[number:] if not outcome_of(c, runs_dir).is_done)
                console.say(
                    f"{_place(study, number)} {_ended(outcome)}"
                    + (f"; about {format_duration(left_s)} left" if left_s else "")
                )
    finally:
        study = with_launch(study, time.monotonic() - started_s)
        write_study(study_dir, study)
        results = write_results(study, runs_dir)
    if failed:
        names = "; ".join(f"{outcome.cell.run}: {outcome.problem}" for outcome in failed)
        raise FirstlightError(
            f"{len(failed)} of {len(study.cells)} cells failed ({names}); {study_dir / REPORT_FILE} is made from the others",
            hint=f"see {study_dir / LOGS}, and try them again: firstlight scale --name {study.name} --resume",
        )
    return results


def write_results(study: Study, runs_dir: Path, *, study_dir: Path | None = None) -> StudyResults:
    """Fit what is done and write results.json and the page, into the study's folder. Raises DataError for cells that do
    not compare.
    """
    results = results_of(study, outcomes_of(study, runs_dir), runs_dir)
    study_dir = study_dir or runs_dir / study.name
    write_json(study_dir / RESULTS_FILE, to_json(results))
    write_page(study_dir / REPORT_FILE, results)
    return results


def say_results(results: StudyResults, console: Console) -> None:
    """Print what a study has come to."""
    console.say()
    for sentence in read_study_in_words(results):
        console.say(sentence)
    big, words = headline(results)
    console.say(f"compute-optimal tokens per parameter: {big}. {words}")


def _run_one(
    study: Study, number: int, before: Outcome, runs_dir: Path, console: Console, stop: StopSignals, run_cell: RunCell
) -> Outcome:
    """Run or go on with one cell. Raises FirstlightError where the mistake is all cells' own."""
    cell = before.cell
    goes_on = before.status != "waiting"
    console.say(
        f"{_place(study, number)} {cell.run}: depth {cell.depth}, {cell.num_tokens / 1e6:.3g} M tokens, about "
        f"{format_duration(cell.expected_s)}" + (f", goes on ({before.status} before)" if goes_on else "")
    )
    command = command_of(settings_of(cell, study.rules, study.common), resume=goes_on)
    log = runs_dir / study.name / LOGS / f"{cell.run}.log"
    with console.progress(cell.run, cell.expected_s, unit="s") as bar:
        code = run_cell(command, log=log, stop=stop, tick=lambda seconds: bar.advance(seconds - bar.done))
    outcome = outcome_of(cell, runs_dir)
    if stop.requested or (code == 0 and outcome.is_done):
        return outcome
    said = _last_error(log)
    why = f"signal {-code}" if code < 0 else f"exit code {code}"
    problem = said or outcome.problem or why
    console.warn(f"{cell.run} failed ({why}): {problem}")
    if code in SAME_FOR_ALL:
        raise FirstlightError(
            f"{cell.run} failed, and the other cells would fail alike: {problem}",
            hint=f"see {log}; the study goes on with: firstlight scale --name {study.name} --resume",
        )
    return Outcome(cell, outcome.status if outcome.status != "done" else "failed", problem=f"{why}: {problem}")


def _last_error(log: Path) -> str:
    """The last line of a log that says what went wrong, or nothing."""
    lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines[-40:] if line.startswith("error: ") or "Error: " in line]
    return errors[-1].removeprefix("error: ") if errors else ""


def _place(study: Study, number: int) -> str:
    return f"[{number}/{len(study.cells)}]"


def _ended(outcome: Outcome) -> str:
    took = f" in {format_duration(outcome.elapsed_s)}" if outcome.elapsed_s is not None else ""
    plus_minus = f" ± {outcome.stderr:.4f}" if outcome.stderr is not None else ""
    return f"{outcome.cell.run}: {outcome.bpb:.4f}{plus_minus} bits per byte{took}"
