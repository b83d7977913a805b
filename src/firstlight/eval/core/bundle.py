"""The bundle of tasks on disk, in its public layout: ``core.yaml``, ``eval_meta_data.csv``, ``eval_data/``.

Whatever differs from the published bundle is named (`Bundle.differences`): such a bundle may be used, its score may not be
held against published ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from firstlight.config import did_you_mean
from firstlight.errors import ConfigError, DataError
from firstlight.eval.core.originals import HASHES, TASKS

Kind = Literal["multiple_choice", "schema", "language_modeling"]
Baselines = Literal["v1", "v2"]
BASELINE_COLUMNS: dict[str, str] = {"v1": "Random baseline", "v2": "Random baseline (DCLM v2)"}


@dataclass(frozen=True)
class Example:
    """One question. ``options`` are choices behind one query, or contexts before one continuation; ``gold`` is the right one.

    multiple_choice: text is the query, options the choices. schema: text is the continuation, options the contexts.
    language_modeling: text is the context, options the one continuation, gold 0.
    """

    text: str
    options: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """Settings of a task. delimiter: what stands between question and answer. path: of its examples."""

    label: str
    kind: Kind
    num_fewshot: int
    delimiter: str
    dataset_uri: str
    path: Path


@dataclass(frozen=True)
class Bundle:
    """Tasks in the order of ``core.yaml``.

    baselines: per version ("v1", "v2") and label, accuracy of guessing, 0 to 1. differences: what is not as published.
    notes: what was taken from elsewhere than the bundle, and why. content_hash: SHA-256 over the hashes of all its files.
    """

    path: Path
    tasks: tuple[Task, ...]
    baselines: Mapping[str, Mapping[str, float]]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    content_hash: str

    def chosen(self, labels: Sequence[str] | None) -> tuple[Task, ...]:
        """The tasks with these labels in the bundle's order, or all. Raises ConfigError for a label that is not there."""
        if labels is None:
            return self.tasks
        known = [task.label for task in self.tasks]
        for label in labels:
            if label not in known:
                raise ConfigError(
                    f"--tasks {label}: the bundle has no such task",
                    hint=did_you_mean(label, known) or f"its tasks are {', '.join(known)}",
                )
        if not labels:
            raise ConfigError("--tasks names no task", hint=f"the tasks are {', '.join(known)}")
        return tuple(task for task in self.tasks if task.label in labels)


def read_bundle(path: Path) -> Bundle:
    """Settings, baselines and hashes of a bundle. Raises DataError naming the file for what is missing or malformed."""
    config_path, meta_path = path / "core.yaml", path / "eval_meta_data.csv"
    tasks = _read_tasks(config_path, path / "eval_data")
    baselines, notes = _read_baselines(meta_path, tasks)
    hashes = {"core.yaml": _sha256(config_path), "eval_meta_data.csv": _sha256(meta_path)}
    differences = _different_settings(tasks, baselines)
    for uri in sorted({task.dataset_uri for task in tasks}):
        file = path / "eval_data" / uri
        if not file.is_file():
            raise DataError(f"{file} is missing", hint=f"{config_path} names it: the bundle is not whole")
        digests = _digests(file)
        hashes[uri] = digests["sha256"]
        kind, _, known = HASHES.get(uri, "").partition(":")
        if not known:
            differences.append(f"eval_data/{uri} is not a file of the published bundle")
        elif digests[kind] != known:
            differences.append(f"eval_data/{uri} is not the published file")
    content = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    return Bundle(path, tuple(tasks), baselines, tuple(differences), tuple(notes), content)


def read_examples(task: Task) -> list[Example]:
    """All examples of a task, in the order of the file. Raises DataError naming file and line for a malformed row."""
    found: list[Example] = []
    try:
        with task.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{task.path}, line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where} is not JSON: {error}", hint="each line holds one example") from None
                found.append(_example(row, task.kind, where=where))
    except OSError as error:
        raise DataError(f"{task.path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{task.path} is not UTF-8 behind line {len(found)}: {error}") from error
    if not found:
        raise DataError(f"{task.path} holds no example")
    return found


def _example(row: Any, kind: Kind, *, where: str) -> Example:
    if not isinstance(row, dict):
        raise DataError(f"{where} is not an object", hint="each line holds one example")
    if kind == "language_modeling":
        return Example(_text(row, "context", where), (_text(row, "continuation", where),), 0)
    text_key, options_key = ("query", "choices") if kind == "multiple_choice" else ("continuation", "context_options")
    options, gold = row.get(options_key), row.get("gold")
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise DataError(f"{where}: {options_key} must be a list of texts, not {options!r:.80}")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        raise DataError(f"{where}: gold {gold!r:.40} is none of the {len(options)} {options_key}, which count from 0")
    return Example(_text(row, text_key, where), tuple(options), gold)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} must be a text, not {value!r:.80}")
    return value


def _read_tasks(path: Path, data_dir: Path) -> list[Task]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="a bundle holds core.yaml, eval_meta_data.csv and eval_data/",
        ) from error
    # ValueError: a date that is none, and text that is not UTF-8.
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} has no list icl_tasks")
    tasks: list[Task] = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, task {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is not a mapping")
        label, uri = entry.get("label"), entry.get("dataset_uri")
        where += f" ({label})" if isinstance(label, str) else ""
        kind, shots, delimiter = (
            entry.get("icl_task_type"), entry.get("num_fewshot"), entry.get("continuation_delimiter", " ")
        )  # fmt: skip
        if not isinstance(label, str) or not isinstance(uri, str) or not isinstance(delimiter, str):
            raise DataError(f"{where}: label, dataset_uri and continuation_delimiter must be texts")
        # The file is named by what may have been downloaded.
        if Path(uri).is_absolute() or ".." in Path(uri).parts:
            raise DataError(f"{where}: dataset_uri {uri!r} leaves the bundle")
        if not isinstance(kind, str) or kind not in get_args(Kind):
            raise DataError(f"{where}: icl_task_type {kind!r} is not known", hint=f"it is {', '.join(get_args(Kind))}")
        if not isinstance(shots, list) or not shots or not isinstance(shots[0], int) or shots[0] < 0:
            raise DataError(f"{where}: num_fewshot must be a list of one count, not {shots!r}")
        if any(task.label == label for task in tasks):
            raise DataError(f"{where}: the label is there twice")
        tasks.append(Task(label, cast(Kind, kind), shots[0], delimiter, uri, data_dir / uri))
    return tasks


def _read_baselines(path: Path, tasks: Sequence[Task]) -> tuple[dict[str, dict[str, float]], list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row.get("Eval Task"): row for row in csv.DictReader(file)}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a table of comma-separated values: {error}") from error
    found: dict[str, dict[str, float]] = {"v1": {}, "v2": {}}
    from_paper: list[str] = []
    for task in tasks:
        row = rows.get(task.label)
        if row is None:
            raise DataError(f"{path} has no row for {task.label}", hint="its column is `Eval Task`")
        for version, column in BASELINE_COLUMNS.items():
            text = row.get(column)
            if version == "v2" and text is None:
                original = TASKS.get(task.label)
                found["v2"][task.label] = (
                    original.baseline_v2_percent / 100 if original else found["v1"][task.label]
                )  # fmt: skip
                from_paper.append(task.label)
                continue
            try:
                percent = float(text or "")
            except ValueError:
                percent = float("nan")
            if not 0 <= percent < 100:
                raise DataError(f"{path}, {task.label}: {column} {text!r} is not a percentage below 100")
            found[version][task.label] = percent / 100
    notes = [f"{path.name} has no column {BASELINE_COLUMNS['v2']!r}: v2 is DCLM's own table"] if from_paper else []
    return found, notes


def _different_settings(tasks: Sequence[Task], baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    labels = {task.label for task in tasks}
    found = [f"task {label} is not in the bundle" for label in TASKS if label not in labels]
    for task in tasks:
        original = TASKS.get(task.label)
        if original is None:
            found.append(f"task {task.label} is not one of the published 22")
            continue
        ours = (task.dataset_uri, task.kind, task.num_fewshot, task.delimiter)
        if ours != tuple(original[:4]):
            found.append(f"task {task.label} has other settings: {ours}, published are {tuple(original[:4])}")
        for version, percent in (("v1", original.baseline_percent), ("v2", original.baseline_v2_percent)):
            value = 100 * baselines[version][task.label]
            if abs(value - percent) > 1e-6:
                found.append(f"task {task.label} has baseline {version} {value:g} %, published is {percent:g} %")
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 of a file, and git's name for the blob."""
    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return {"sha256": hashlib.sha256(data).hexdigest(), "git-sha1": git.hexdigest()}
