"""The studio's runs: a list with what a person wants to see first, one run's record, and its curves.

Names come from the network here, so they are names only: `record.find_run`, which takes a path too, is not asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query
from starlette.responses import Response

from firstlight.errors import DataError
from firstlight.recipes.record import NAME_PATTERN, RECORD_FILE, ListedRun, list_runs, read_run
from firstlight.serve.studio_curves import MOST_POINTS, is_number, parse_row, read_curves
from firstlight.serve.studio_json import answer, problem

METRICS_FILE = "metrics.jsonl"
TAIL_BYTES = 16 * 1024
MOST_LISTED = 500


def add_runs(app: FastAPI, *, runs_dir: Path, served_dir: Path) -> None:
    """Hang ``GET /api/runs``, ``/api/runs/NAME`` and ``/api/runs/NAME/metrics`` on a server.

    served_dir: the served run's folder, which need not lie among the others and is listed first then.
    """

    @app.get("/api/runs", include_in_schema=False)
    def runs() -> Response:
        found = list_runs(runs_dir)
        if all(run.name != served_dir.name for run in found):
            found.insert(0, _listed(served_dir))
        listed = [line_of(run) for run in found[:MOST_LISTED]]
        return answer({"runs": listed, "served": served_dir.name, "num_left_out": len(found) - len(listed)})

    @app.get("/api/runs/{name}", include_in_schema=False)
    def run(name: str) -> Response:
        folder = folder_of(name, runs_dir=runs_dir, served_dir=served_dir)
        if folder is None:
            return problem(f"there is no run {name!r}", status_code=404)
        try:
            record = read_run(folder)
        except DataError as error:
            return problem(error.what, hint=error.hint, status_code=409)
        return answer(record.to_dict() | {"name": folder.name, "status": record.shown_status()})

    @app.get("/api/runs/{name}/metrics", include_in_schema=False)
    def metrics(
        name: str,
        start: int = Query(0, alias="from", ge=0, lt=2**62),
        tag: str = Query("", max_length=64),
        max_points: int = Query(1500, ge=10, le=MOST_POINTS),
    ) -> Response:
        folder = folder_of(name, runs_dir=runs_dir, served_dir=served_dir)
        if folder is None:
            return problem(f"there is no run {name!r}", status_code=404)
        try:
            status = read_run(folder).shown_status()
        except DataError:
            status = "damaged"
        try:
            found = read_curves(folder / METRICS_FILE, start=start, tag=tag, max_points=max_points)
        except OSError as error:
            return problem(f"{METRICS_FILE} of {name} cannot be read: {error.strerror or error}", status_code=409)
        return answer(found | {"status": status})


def folder_of(name: str, *, runs_dir: Path, served_dir: Path) -> Path | None:
    """Folder of the run of that name; None for what is no name of a run, or where there is none."""
    if not NAME_PATTERN.fullmatch(name):
        return None
    folder = runs_dir / name
    if (folder / RECORD_FILE).is_file():
        return folder
    return served_dir if name == served_dir.name else None


def line_of(run: ListedRun) -> dict[str, Any]:
    """One run in the list: who it is, how far, how good; or what is wrong with its record."""
    if run.record is None:
        return {"name": run.name, "status": "damaged", "problem": run.problem}
    record = run.record
    last = last_train_row(run.path / METRICS_FILE)
    plan = record.config.get("plan")
    plan = plan if isinstance(plan, dict) else {}
    return {
        "name": run.name,
        "status": record.shown_status(),
        "recipe": record.recipe,
        "depth": plan.get("depth"),
        "created_unix_s": record.created_unix_s,
        "updated_unix_s": last.get("time_unix_s") or record.updated_unix_s,
        "parents": list(record.parents),
        "num_steps": plan.get("estimated_steps") or plan.get("num_steps"),
        "step": last["step"] + 1 if is_number(last.get("step")) else record.final.get("steps"),
        "loss_nats": last.get("loss_nats"),
        "val_bpb": _number(record.final.get("val_bpb")),
    }


def last_train_row(path: Path) -> dict[str, Any]:
    """The newest whole training row near the end of a metrics file; {} where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            content = file.read()
    except OSError:
        return {}
    # The first line is cut where the tail began, the last where the run is writing; what is no whole row is passed over.
    for line in reversed(content.split(b"\n")[:-1]):
        row = parse_row(line)
        if row and row.get("kind") == "train":
            return {key: value for key, value in row.items() if is_number(value)}
    return {}


def _listed(path: Path) -> ListedRun:
    try:
        return ListedRun(path.name, path, read_run(path))
    except DataError as error:
        return ListedRun(path.name, path, None, problem=str(error))


def _number(value: Any) -> float | None:
    return value if is_number(value) else None
