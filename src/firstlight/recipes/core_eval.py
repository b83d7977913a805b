"""CORE of a model, kept on disk as it goes: an evaluation that was killed goes on where it was.

Decisions are appended to ``core/KEY.jsonl`` in the run's folder; KEY stands for all that decides them (weights, tokenizer,
bundle, settings), so nothing is ever taken from another evaluation. The result goes to ``core/KEY.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.errors import DataError
from firstlight.eval.core.bundle import Bundle
from firstlight.eval.core.evaluate import Encode, evaluate_core
from firstlight.eval.core.originals import TASKS
from firstlight.eval.core.results import CoreResult
from firstlight.eval.core.scorer import Scorer
from firstlight.eval.slabs import Record
from firstlight.runtime.context import Runtime
from firstlight.train.manifest import read_manifest, tensor_files

SCORING_VERSION = 1
"""Raise when the same model and bundle may give other decisions."""

LONGEST_EXTENDED = 10
"""``--long-prompts extend`` makes rotary tables at most so many times as long as in training, as nanochat does."""


@dataclass(frozen=True)
class Subject:
    """A model to be scored. name, step: of the run, for people. encode: without BOS. folder: where decisions are kept."""

    name: str
    scorer: Scorer
    encode: Encode
    bos_id: int | None
    weights_hash: str
    tokenizer_hash: str
    folder: Path
    step: int | None = None


def weights_hash(checkpoint: Path) -> str:
    """SHA-256 that stands for a checkpoint's weights: that of its file, or over those of its shares in their order."""
    files = read_manifest(checkpoint)["files"]
    hashes = [files[name]["sha256"] for name in tensor_files(files, "model")]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def run_core(
    subject: Subject,
    bundle: Bundle,
    *,
    runtime: Runtime,
    tasks: Sequence[str] | None = None,
    max_per_task: int | None = None,
    baselines: str = "v1",
    long_prompts: str = "crop",
    fresh: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[CoreResult, dict[str, Any]]:
    """The scores, and what they rest on: names, hashes, versions, settings and the files. Collective.

    fresh: forget decisions that were kept. report: told what was taken from an earlier evaluation and what was dropped.
    Raises what `evaluate_core` raises, and DataError where the folder cannot be written.
    """
    facts: dict[str, Any] = {
        "weights_hash": subject.weights_hash,
        "tokenizer_hash": subject.tokenizer_hash,
        "bundle_hash": bundle.content_hash,
        "max_per_task": max_per_task,
        "long_prompts": long_prompts,
        "max_seq_len": subject.scorer.max_seq_len,
        "dtype": runtime.dtype_name,
        "device": runtime.device.type,
        "scoring_version": SCORING_VERSION,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    log = DecisionLog(subject.folder / f"{key}.jsonl", facts, report=report)
    done: list[Record] = []
    problem: DataError | None = None
    if runtime.is_main:
        try:
            done = log.open(fresh=fresh)
        except DataError as error:
            problem = error
    words = runtime.control.broadcast_text("" if problem is None else json.dumps([problem.what, problem.hint]))
    if words:
        what, hint = json.loads(words)
        raise DataError(what, hint=hint)
    try:
        result = evaluate_core(
            subject.scorer,
            subject.encode,
            subject.bos_id,
            bundle,
            runtime=runtime,
            tasks=tasks,
            max_per_task=max_per_task,
            baselines=baselines,
            done=done,
            on_records=log.append,
            progress=progress,
            should_stop=should_stop,
        )
    finally:
        log.close()
    facts |= {"model": subject.name, "step": subject.step, "num_resumed": len(done), "versions": _versions()}
    suffix = ""
    chosen = sorted(task.label for task in result.tasks)
    if chosen != sorted(TASKS) or baselines != "v1":
        suffix = "-" + hashlib.sha256(json.dumps([chosen, baselines]).encode()).hexdigest()[:8]
    path = subject.folder / f"{key}{suffix}.json"
    facts |= {"decisions": str(log.path), "result": str(path)}
    if runtime.is_main:
        text = json.dumps({**facts, **result.to_dict()}, indent=1) + "\n"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    return result, facts


class DecisionLog:
    """Decisions in a file: a header line with what decides them, then one JSON object a line.

    Two evaluations may append to the same file, for instance of other tasks: each adds whole lines at its end.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, report: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._header = {"kind": "core_decisions", "schema": 1, **facts}
        self._report = report or (lambda text: None)
        self._file: Any = None

    def open(self, *, fresh: bool) -> list[Record]:
        """What the file holds; from here on it can be appended to.

        A last line that was cut short by a kill is dropped, and reported. Raises DataError for a file that is damaged
        elsewhere or is not what its name says, or cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            found: list[Record] = []
            keep = 0
            if self.path.exists() and not fresh:
                found, keep = self._read()
            self._file = self.path.open("ab", buffering=0)
            if self.path.stat().st_size > keep:
                self._file.truncate(keep)
            if not keep:
                self._write([self._header])
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error.strerror or error}", hint="the run's folder must be writable"
            ) from error
        if found:
            self._report(f"{len(found):,} decisions were there already ({self.path}); --fresh starts again")
        return found

    def append(self, records: list[Record]) -> None:
        """Add decisions; they are on disk when this returns, as far as the operating system can tell."""
        try:
            self._write(records)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, records: list[Any]) -> None:
        rest = memoryview("".join(json.dumps(record) + "\n" for record in records).encode())
        while rest:
            # A raw write may take part of it when the disk is nearly full.
            rest = rest[self._file.write(rest) :]

    def _read(self) -> tuple[list[Record], int]:
        """Whole records, and the bytes that they and the header take."""
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._report(f"{self.path}: the last line was cut short and is dropped ({len(data) - end} bytes)")
        lines = data[:end].decode("utf-8", errors="replace").splitlines()
        hint = "--fresh starts again"
        if not lines:
            return [], 0
        records: list[Record] = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1 and record != self._header:
                    raise DataError(f"{self.path} is of another evaluation than its name says", hint=hint)
                # Two evaluations that began at the same moment have both written it.
                if record == self._header:
                    continue
                if not (isinstance(record["index"], int) and isinstance(record["correct"], bool)):
                    raise ValueError("index and correct")
                records.append({name: record[name] for name in _RECORD})
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path}, line {number} is damaged: {error}", hint=hint) from None
        return records, end


_RECORD = ("task", "index", "correct", "choice", "margin", "marks", "seconds")


def _versions() -> dict[str, str]:
    from firstlight.runtime import environment

    return environment.versions()
