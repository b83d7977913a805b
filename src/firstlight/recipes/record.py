"""The record of a run, ``run.json``: what was asked for, where it ran, on which data, what came out. And finding runs
again.

A run's folder::

    runs/<name>/run.json        this record
               metrics.jsonl    every number on the way (runtime/metrics.py)
               samples.md       what the model said, by step
               report.html      all of it as one page
               tokenizer.json   checkpoints/
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from firstlight.errors import ConfigError, DataError
from firstlight.runtime import environment
from firstlight.runtime.metrics import strict_json

SCHEMA = 1
STATUSES = ("running", "done", "stopped", "failed")
RECORD_FILE = "run.json"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of runs, which are names of folders."""


@dataclass(frozen=True)
class RunRecord:
    """One run. Made by ``new_record``, changed by ``updated``, written by ``write_run``.

    status: ``running``, ``done``, ``stopped`` (by a person or a guard; can be resumed) or ``failed``.
    config: every setting after all defaults and derivations. hardware: see ``runtime.hardware.describe``.
    data_hash, tokenizer_hash, val_hash: sha256 of the contents, so that two scores can be compared or not.
    parents: names of the runs that this one started from. notes: choices and fallbacks, each with its reason.
    cost: seconds (``elapsed_s`` in all, ``train_s``, ``eval_s``, ...) and what else was spent.
    final: ``val_bpb``, ``val_bpb_stderr``, ``steps``, ``tokens``, ``train_loss_nats``; more in later stages.
    process: the process that writes this (machine's fingerprint and process id), to tell a run from a killed one.
    """

    name: str
    recipe: str = "base"
    status: str = "running"
    config: dict[str, Any] = field(default_factory=dict)
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "fp32"
    world_size: int = 1
    hardware: dict[str, Any] = field(default_factory=dict)
    data_hash: str | None = None
    tokenizer_hash: str | None = None
    val_hash: str | None = None
    parents: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cost: dict[str, float] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    created_unix_s: float = 0.0
    updated_unix_s: float = 0.0
    process: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")

    def to_dict(self) -> dict[str, Any]:
        """The record as strict JSON takes it (NaN and infinities as None)."""
        return strict_json(asdict(self))[0]

    def shown_status(self) -> str:
        """The status, and ``killed`` for a run of this machine that is marked as running by a process that is gone."""
        machine, _, pid = self.process.rpartition(":")
        if self.status == "running" and machine == _machine() and pid.isdigit() and not _is_alive(int(pid)):
            return "killed"
        return self.status


def new_record(name: str, **facts: Any) -> RunRecord:
    """A record of a run that starts now in this process; ``facts`` are fields of RunRecord (config, device, notes,
    ...).
    """
    now = time.time()
    values: dict[str, Any] = {
        "git_commit": environment.git_commit(),
        "versions": environment.versions(),
        "created_unix_s": now,
        "updated_unix_s": now,
        "process": _this_process(),
    }
    return RunRecord(name=name, **(values | facts))


def updated(record: RunRecord, **changes: Any) -> RunRecord:
    """The record with some fields changed, at the present time and by this process."""
    values: dict[str, Any] = {"updated_unix_s": time.time(), "process": _this_process()}
    return replace(record, **(values | changes))


def write_run(run_dir: Path, record: RunRecord) -> Path:
    """Write ``run.json`` in one move: a reader sees the old record or the new one. Returns its path. Raises OSError."""
    path = run_dir / RECORD_FILE
    temporary = path.with_name(RECORD_FILE + ".tmp")
    # backslashreplace: a path that is not UTF-8 holds lone surrogates, and what this makes of them is JSON's own escape.
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as out:
        json.dump(record.to_dict(), out, indent=2, ensure_ascii=False, allow_nan=False)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)
    return path


def read_run(run_dir: Path) -> RunRecord:
    """The record of the run in a folder. Raises DataError where it is missing, damaged, or of a newer firstlight."""
    path = run_dir / RECORD_FILE
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{run_dir} holds no run: {RECORD_FILE} is missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged: not a JSON object")
    schema = values.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}; this firstlight knows {SCHEMA}",
            hint="it was written by a newer firstlight: update this one",
        )
    known = {f.name for f in fields(RunRecord)}
    try:
        record = RunRecord(**{k: v for k, v in values.items() if k in known})
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    for key in ("config", "versions", "hardware", "cost", "final"):
        if not isinstance(getattr(record, key), dict):
            raise DataError(f"{path} is damaged: {key} is not an object")
    return replace(record, parents=tuple(record.parents), notes=tuple(record.notes))


@dataclass(frozen=True)
class ListedRun:
    """A folder under the runs folder: its record, or what is wrong with it."""

    name: str
    path: Path
    record: RunRecord | None
    problem: str | None = None


def list_runs(runs_dir: Path) -> list[ListedRun]:
    """All runs in a folder, the newest first; damaged ones are listed as such, at the end. [] where there is no
    folder.
    """
    found = []
    if runs_dir.is_dir():
        for path in sorted(runs_dir.iterdir()):
            if not (path / RECORD_FILE).exists():
                continue
            try:
                found.append(ListedRun(path.name, path, read_run(path)))
            except DataError as error:
                found.append(ListedRun(path.name, path, None, problem=str(error)))
    return sorted(found, key=lambda run: -run.record.created_unix_s if run.record else float("inf"))


def find_run(name: str, runs_dir: Path) -> Path:
    """Folder of the run of that name, or of the path given. Raises ConfigError with the nearest names."""
    for path in (runs_dir / name, Path(name)):
        if (path / RECORD_FILE).is_file():
            return path
    names = [run.name for run in list_runs(runs_dir)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif names:
        hint = f"there are: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    else:
        hint = "there are no runs there yet: start one with `firstlight train base` or `firstlight quickstart`"
    raise ConfigError(f"no run {name!r} in {runs_dir}", hint=hint)


def name_prefix(depth: int, data: str) -> str:
    """How the name of a run begins that was not given one.

    >>> name_prefix(4, "my texts/wiki.en.jsonl")
    'd4-wiki.en'
    """
    stem = Path(data).resolve().stem.split(":")[0] or "data"
    return f"d{depth}-" + "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem)


def did_you_mean(name: str, runs_dir: Path) -> str:
    """Words that name the runs that ``name`` may be a slip for, or nothing."""
    near = difflib.get_close_matches(name, [record.name for record in list_runs(runs_dir)], n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def new_run_dir(runs_dir: Path, name: str | None, *, prefix: str = "run") -> Path:
    """Make the folder of a new run: of the given name, or the first free one of ``prefix-1``, ``prefix-2``, ...

    Two processes that ask at the same time get different folders. An empty folder of that name is used.
    Raises ConfigError for a name that is taken or cannot be a folder's, and where the folder cannot be made.
    """
    if name is not None and not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"--run {name!r} cannot be the name of a run",
            hint="use letters, digits, '.', '_' and '-' (at most 100, a letter or digit first), for example d4-wikipedia",
        )
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (runs_dir / name).mkdir()
            return runs_dir / name
        numbers = [re.fullmatch(rf"{re.escape(prefix)}-(\d+)", path.name) for path in runs_dir.iterdir()]
        number = max((int(found.group(1)) for found in numbers if found), default=0)
        while True:
            number += 1
            try:
                (runs_dir / f"{prefix}-{number}").mkdir()
            except FileExistsError:
                continue
            return runs_dir / f"{prefix}-{number}"
    except FileExistsError as error:
        if name is not None and (runs_dir / name).is_dir() and not any((runs_dir / name).iterdir()):
            return runs_dir / name
        if name is None or not runs_dir.is_dir():
            raise ConfigError(f"{runs_dir} is not a folder", hint="set FIRSTLIGHT_RUNS to a folder for runs") from error
        raise ConfigError(
            f"--run {name}: there is a run of that name in {runs_dir}",
            hint="continue it with --resume, or choose another name with --run",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"a folder for the run cannot be made in {runs_dir}: {error.strerror or error}",
            hint="set FIRSTLIGHT_RUNS to a folder that you may write to",
        ) from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names, for tables.

    >>> flatten({"model": {"n_layer": 4}, "seed": 1})
    {'model.n_layer': 4, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _machine() -> str:
    # A fingerprint, because a record may be published and a host's name is nobody's business.
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _this_process() -> str:
    return f"{_machine()}:{os.getpid()}"


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end the process there; not knowing is better
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
