"""Published runs: a record without anything private and a short curve for each, and one table made from them.

    runs/NAME/run.json, metrics.jsonl -> lab/runs/NAME.json -> lab/RESULTS.md

Left out: the fingerprint of the machine and process; of absolute paths only the last part stays. The table is made from
lab/runs alone, so anybody can make it again and a test does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from firstlight.errors import ConfigError, DataError, Problems
from firstlight.recipes.compare_groups import NEUTRAL
from firstlight.recipes.compare_words import show_flops
from firstlight.recipes.record import NAME_PATTERN, RunRecord, read_run
from firstlight.recipes.report import write_page
from firstlight.recipes.report_svg import smooth, thin
from firstlight.recipes.settings import HORIZONS, BaseSettings
from firstlight.runtime.console import format_count, format_duration
from firstlight.runtime.metrics import read_metrics

KIND = "published_run"
RESULTS_FILE = "RESULTS.md"
NUM_CURVE_POINTS = 60

_ABSOLUTE = re.compile(
    r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[/\\][^\s'\"`,;:()\[\]<>|]*[/\\]([^\s'\"`,;:()\[\]<>|/\\]*)|(?<![\w.:/~-])[/\\](?=\w)"
)
_IN_COLUMNS = {"data", "val", "tokenizer", "depth", "preset", "dtype", *HORIZONS}


def without_private(value: Any) -> Any:
    """A JSON value with only the last part of each absolute path in its texts.

    >>> without_private({"data": "/home/ann/texts/wiki", "why": "read from /tmp/x/a.txt, 3 files"})
    {'data': 'wiki', 'why': 'read from a.txt, 3 files'}
    """
    if isinstance(value, Mapping):
        return {key: without_private(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_private(item) for item in value]
    if not isinstance(value, str):
        return value
    # A text that is a path as a whole may hold spaces.
    if re.match(r"(/|~/|[A-Za-z]:[\\/]|\\\\)", value) and "\n" not in value and not re.search(r"[,;:]\s", value[3:]):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _ABSOLUTE.sub(lambda match: match.group(1) or "", value)


def published(run_dir: Path) -> dict[str, Any]:
    """What is published of a run. Raises DataError where its record is damaged, ConfigError where it has no final score."""
    record = read_run(run_dir)
    if record.final.get("val_bpb") is None:
        raise ConfigError(
            f"run {record.name} is {record.shown_status()} and has no final score",
            hint="publish a run that is done",
        )
    values = record.to_dict()
    del values["process"]
    rows = read_metrics(run_dir / "metrics.jsonl", damaged=[])
    loss = [
        (float(row["step"]), float(row["loss_nats"]))
        for row in rows
        if row.get("kind") == "train" and isinstance(row.get("loss_nats"), int | float)
    ]
    scores = {row["step"]: row for row in rows if row.get("kind") == "eval" and row.get("val_bpb") is not None}
    return {
        "kind": KIND,
        "schema": 1,
        "record": without_private(values),
        "curve": {
            "loss": [[int(x), round(y, 5)] for x, y in thin(smooth(loss), num_buckets=NUM_CURVE_POINTS // 2)],
            "bpb": [[step, round(row["val_bpb"], 6), row.get("num_documents")] for step, row in sorted(scores.items())],
        },
    }


def publish(run_dirs: Sequence[Path], lab_dir: Path) -> list[Path]:
    """Write lab/runs/NAME.json for each run and RESULTS.md for all; the paths. Nothing is written where a run cannot be.

    Raises what `published` raises, and OSError.
    """
    made = [published(run_dir) for run_dir in run_dirs]
    folder = lab_dir / "runs"
    _check_names(made, folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in made:
        text = json.dumps(one, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        # A point of a curve to a line.
        text = re.sub(r"\[\s+([-\d.e+]+|null),\s+([-\d.e+]+|null)(?:,\s+([-\d.e+]+|null))?\s+\]", _joined, text)
        paths.append(folder / f"{one['record']['name']}.json")
        write_page(paths[-1], text + "\n")
    write_page(lab_dir / RESULTS_FILE, render_results(read_published(folder)))
    return [*paths, lab_dir / RESULTS_FILE]


def _check_names(made: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Raise ConfigError where a file would take the place of another run's, or lie elsewhere."""
    problems = Problems()
    before = {record.name: record.created_unix_s for record in read_published(folder)}
    for one in made:
        name, created = one["record"]["name"], one["record"]["created_unix_s"]
        if not NAME_PATTERN.fullmatch(str(name)):
            problems.add(f"the run that calls itself {name!r} in its run.json has no name for a file")
        elif before.setdefault(name, created) != created:
            problems.add(
                f"two runs are called {name}, and {folder / name}.json can be of one",
                hint="publish a copy with another name in its run.json, or remove that file",
            )
    problems.raise_if_any()


def read_published(folder: Path) -> list[RunRecord]:
    """The records in lab/runs, by name; [] where there is no folder. Raises DataError for a damaged file."""
    known = {one.name for one in fields(RunRecord)}
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["kind"] != KIND or values["schema"] != 1:
                raise ValueError(f"kind {values['kind']!r}, schema {values['schema']!r}")
            records.append(RunRecord(**{key: value for key, value in values["record"].items() if key in known}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no published run, or is damaged: {error}",
                hint="publish it again: firstlight runs publish RUN",
            ) from None
    return records


def render_results(records: Sequence[RunRecord]) -> str:
    """The page RESULTS.md: a table for each set of data and validation documents, the best score first."""
    lines = [
        "# Results",
        "",
        "Made from `lab/runs/*.json` by `firstlight runs publish RUN`; changes made by hand are lost.",
        "bpb: bits per byte of unseen text, ± one standard error over documents; lower is better. Two rows can be compared where they",
        "stand in one table and their documents and window are the same. How: [docs/comparing.md](../docs/comparing.md).",
    ]
    if not records:
        lines += ["", "No run has been published yet."]
    for key in sorted({_set_of(record) for record in records}):
        data, val, data_hash, val_hash = key
        lines += [
            "",
            f"## {_cell(data)}, validation {_cell(val)}",
            "",
            f"Data `{data_hash[:12]}`, validation documents `{val_hash[:12]}`.",
            "",
            "| run | depth | preset | other settings | bpb | documents | window | steps | tokens | FLOPs | time | machine | commit |",
            "|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|---|---|",
        ]
        rows = [record for record in records if _set_of(record) == key]
        for record in sorted(rows, key=lambda one: (one.final["val_bpb"], one.name)):
            lines.append("| " + " | ".join(_cell(value) for value in _row(record)) + " |")
    return "\n".join(lines) + "\n"


def _set_of(record: RunRecord) -> tuple[str, str, str, str]:
    settings = record.config.get("settings", {})
    val = record.config.get("val") or settings.get("val") or "-"
    return str(settings.get("data", "-")), str(val), record.data_hash or "-", record.val_hash or "-"


def _row(record: RunRecord) -> list[str]:
    final, plan = record.final, record.config.get("plan", {})
    settings = record.config.get("settings", {})
    error = final.get("val_bpb_stderr")
    tokens, elapsed_s = final.get("tokens"), record.cost.get("elapsed_s")
    flops_per_token = plan.get("flops_per_token")
    flops = tokens * flops_per_token if tokens is not None and flops_per_token else None
    machine = record.hardware.get("gpu") or record.hardware.get("cpu") or record.device
    if record.world_size > 1:
        machine = f"{record.world_size} × {machine}"
    elif record.hardware.get("num_threads") and not record.hardware.get("gpu"):
        count = record.hardware["num_threads"]
        machine = f"{machine}, {count} thread{'s' if count != 1 else ''}"
    return [
        record.name,
        str(settings.get("depth", "-")),
        str(settings.get("preset", "-")),
        _others(settings),
        f"{final['val_bpb']:.4f}" + (f" ± {error:.4f}" if error is not None else ""),
        _documents(final),
        str(record.config.get("model", {}).get("max_seq_len", "-")),
        f"{final['steps']:,}" if final.get("steps") is not None else "-",
        format_count(tokens) if tokens is not None else "-",
        show_flops(flops),
        format_duration(elapsed_s) if elapsed_s is not None else "-",
        f"{machine}, {record.dtype}",
        (record.git_commit or "-")[:10],
    ]


def _documents(final: Mapping[str, Any]) -> str:
    scored, total = final.get("num_documents"), final.get("num_documents_total")
    if scored is None:
        return "-"
    return f"{scored:,}" if total in (None, scored) else f"{scored:,} of {total:,}"


def _others(settings: Mapping[str, Any]) -> str:
    """Settings that were not left at their defaults and have no column, the seed among them."""
    defaults = {one.name: one.default for one in fields(BaseSettings)}
    said = [
        f"{name} {value}"
        for name, value in sorted(settings.items())
        if (name == "seed" or name not in NEUTRAL) and name not in _IN_COLUMNS and value != defaults.get(name)
    ]
    return ", ".join(said) or "-"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _joined(match: re.Match[str]) -> str:
    return f"[{', '.join(part for part in match.groups() if part is not None)}]"
