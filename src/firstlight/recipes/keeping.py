"""Keeps the record of a run up to date while a launch lasts: facts, notes, how it ended, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstlight.errors import CheckpointError
from firstlight.recipes import record as records
from firstlight.recipes.report import write_report
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime


class RecordKeeper:
    """The record of one launch. All ranks hold it; rank 0 writes it.

    record, run_dir: set by `open`. notes: every choice and fallback with its reason, each once.
    """

    record: records.RunRecord
    run_dir: Path

    def __init__(self, runtime: Runtime, console: Console) -> None:
        self._runtime, self._console = runtime, console
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """A choice or fallback and its reason: said once, and kept in the run's record."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self._console.say(sentence)

    def open(self, run_dir: Path, previous: records.RunRecord | None, **facts: Any) -> None:
        """Begin the record in ``run_dir``, or go on with ``previous`` and its notes, and write it."""
        self.run_dir = run_dir
        if previous is None:
            self.record = records.new_record(run_dir.name, **facts)
        else:
            # A folder that was copied or renamed goes on under its own name.
            self.record = records.updated(previous, **facts, name=run_dir.name)
            self.notes = list(dict.fromkeys((*previous.notes, *self.notes)))
        self.save()

    def save(self, **changes: Any) -> None:
        """Write the record with these changes. Raises CheckpointError where the disk refuses."""
        self.record = records.updated(self.record, notes=tuple(self.notes), **changes)
        if not self._runtime.is_main:
            return
        try:
            records.write_run(self.run_dir, self.record)
        except OSError as error:
            raise CheckpointError(
                f"{self.run_dir / records.RECORD_FILE} could not be written: {error.strerror or error}",
                hint="make room or allow writing there; checkpoints that were saved stay good, go on with --resume",
            ) from error

    def put_back(self, previous: records.RunRecord | None) -> None:
        """The launch could not go on from what is there: its settings are not those of the run."""
        if previous is not None:
            self.record = records.updated(self.record, config=previous.config)

    def close(self, status: str, sentence: str) -> None:
        """Note how the run ended; what goes wrong here must not hide the error that ended it."""
        self.notes.append(sentence)
        try:
            self.save(status=status)
        except CheckpointError as error:
            self._console.warn(str(error))
        self.write_report()

    def write_report(self) -> None:
        """Write report.html; a report that fails never loses a run."""
        if not self._runtime.is_main:
            return
        try:
            write_report(self.run_dir)
        except Exception as error:
            self._console.warn(f"the report could not be written: {type(error).__name__}: {error}")
