"""A study on disk: its plan, which is fixed when it begins, and what its cells have come to.

    runs/NAME/scale.json     the plan (this file), and how long each launch took
              results.json   outcomes and fits
              report.html    the page
              logs/          what each cell said
    runs/NAME-d2-c1/ ...     the cells: ordinary runs, which `firstlight runs list` shows

The study's folder holds no run.json, so it is not taken for a run. A cell's outcome is read from its own record: there is
no second book that could disagree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firstlight.config import from_dict, to_dict
from firstlight.errors import ConfigError, DataError
from firstlight.recipes.record import RECORD_FILE, list_runs, read_run
from firstlight.recipes.scale.cell import Common
from firstlight.recipes.scale.grid import Cell, Rules
from firstlight.runtime.metrics import strict_json

SCHEMA = 1
STUDY_FILE = "scale.json"
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"
LOGS = "logs"


@dataclass(frozen=True)
class Study:
    """The plan of a study. minutes: as asked, None where budgets were given. seed_noise: bits per byte, for one seed.

    num_train_tokens, num_val_documents, num_score_tokens: of the text. launches_s: wall time of each launch so far.
    """

    name: str
    rules: Rules
    common: Common
    depths: tuple[int, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    minutes: float | None
    seed_noise: float
    num_train_tokens: int
    num_val_documents: int
    num_score_tokens: int
    prepare_s: float
    notes: tuple[str, ...] = ()
    created_unix_s: float = 0.0
    launches_s: tuple[float, ...] = ()
    schema: int = SCHEMA

    @property
    def expected_s(self) -> float:
        return self.prepare_s + sum(cell.expected_s for cell in self.cells)


@dataclass(frozen=True)
class Outcome:
    """A cell and what it has come to. status: ``waiting``, or its run's (done, running, stopped, killed, failed, damaged)."""

    cell: Cell
    status: str
    bpb: float | None = None
    stderr: float | None = None
    num_tokens: int | None = None
    elapsed_s: float | None = None
    train_s: float | None = None
    val_hash: str | None = None
    tokenizer_hash: str | None = None
    problem: str = ""

    @property
    def is_done(self) -> bool:
        return self.status == "done" and self.bpb is not None


def write_study(study_dir: Path, study: Study) -> Path:
    """Write scale.json in one move. Raises OSError."""
    return write_json(study_dir / STUDY_FILE, to_dict(study))


def read_study(study_dir: Path) -> Study:
    """The study in a folder. Raises DataError where it is missing, damaged, or of a newer firstlight."""
    path = study_dir / STUDY_FILE
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{study_dir} holds no scaling study: {STUDY_FILE} is missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("schema"), int) or values["schema"] > SCHEMA:
        raise DataError(
            f"{path} is damaged, or was written by a newer firstlight",
            hint="update this one, or begin another study with --name",
        )
    try:
        return from_dict(Study, values, where=str(path))
    except ConfigError as error:
        raise DataError(f"{path} is damaged: {error.what}", hint="begin another study with --name") from None


def find_study(name: str, runs_dir: Path) -> Path:
    """Folder of the study of that name, or of the path given. Raises ConfigError that names the studies there are."""
    for path in (runs_dir / name, Path(name)):
        if (path / STUDY_FILE).is_file():
            return path
    names = sorted(p.parent.name for p in runs_dir.glob(f"*/{STUDY_FILE}")) if runs_dir.is_dir() else []
    raise ConfigError(
        f"no scaling study {name!r} in {runs_dir}",
        hint=f"there are: {', '.join(names)}" if names else "begin one with `firstlight scale --minutes 35`",
    )


def outcome_of(cell: Cell, runs_dir: Path) -> Outcome:
    """What a cell has come to, by its run's record."""
    run_dir = runs_dir / cell.run
    if not (run_dir / RECORD_FILE).exists():
        return Outcome(cell, "waiting")
    try:
        record = read_run(run_dir)
    except DataError as error:
        return Outcome(cell, "damaged", problem=error.what)
    final, cost = record.final, record.cost
    ended = [note for note in record.notes if note.startswith("ended: ")]
    return Outcome(
        cell, record.shown_status(), bpb=final.get("val_bpb"), stderr=final.get("val_bpb_stderr"),
        num_tokens=final.get("tokens"), elapsed_s=cost.get("elapsed_s"), train_s=cost.get("train_s"),
        val_hash=record.val_hash, tokenizer_hash=record.tokenizer_hash,
        problem="" if record.status == "done" or not ended else ended[-1].removeprefix("ended: "),
    )  # fmt: skip


def outcomes_of(study: Study, runs_dir: Path) -> tuple[Outcome, ...]:
    return tuple(outcome_of(cell, runs_dir) for cell in study.cells)


def check_free(study: Study, runs_dir: Path) -> None:
    """Refuse a new study whose name, or a cell's, is a run's already. Raises ConfigError."""
    if (runs_dir / study.name / STUDY_FILE).exists():
        raise ConfigError(
            f"--name {study.name}: there is a study of that name in {runs_dir}",
            hint=f"go on with it: firstlight scale --name {study.name} --resume, or choose another --name",
        )
    taken = {run.name for run in list_runs(runs_dir)}
    clash = [name for name in (study.name, *(cell.run for cell in study.cells)) if name in taken]
    if clash:
        raise ConfigError(
            f"--name {study.name}: there are runs named {', '.join(clash[:4])} already", hint="choose another --name"
        )


def begin(runs_dir: Path, study: Study) -> Path:
    """Make the folder of a study and write its plan. Raises ConfigError where the folder cannot be made."""
    study_dir = runs_dir / study.name
    try:
        study_dir.mkdir(parents=True, exist_ok=True)
        write_study(study_dir, study)
    except OSError as error:
        raise ConfigError(
            f"the study's folder {study_dir} cannot be written: {error.strerror or error}",
            hint="set FIRSTLIGHT_RUNS to a folder that you may write to",
        ) from error
    return study_dir


def with_launch(study: Study, elapsed_s: float) -> Study:
    return replace(study, launches_s=(*study.launches_s, round(elapsed_s, 1)))


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write one strict JSON object (NaN and infinities as null): a reader sees the old or the new one. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(
        json.dumps(strict_json(value)[0], indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(temporary, path)
    return path
