"""What a source of text is: a name and shards in one canonical order. The seam between where text lies and who reads it.

A shard is one file. A document is one text in it. ``"wiki/shard_00003.parquet:117"`` names row 117 of that shard; rows
are counted from 0 in every kind of file, and skipped rows are counted too, so the number finds the row in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from firstlight.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(what, done, total)``: what is being done, units done so far, units in all (None: not known)."""

MAX_EXAMPLES = 5
"""Skipped rows that are named; the rest are only counted."""


@dataclass(frozen=True)
class SourceShard:
    """One file of documents.

    name: relative to the source, with ``/`` on every system; unique in the source. The canonical order sorts by it.
    path: the local file, or None where it has still to be fetched.
    num_bytes: size of the file, None where it is not known before it is fetched.
    fetch: makes the file local (downloads and verifies it, or verifies the copy that is there) and returns its path.
    sha256: hex digest of the file where its publisher states one.
    """

    name: str
    path: Path | None
    num_bytes: int | None = None
    fetch: Callable[[Progress | None], Path] | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """Shards in canonical order.

    name: what the user called it: ``builtin``, a directory, a preset or a hub id.
    val_shard: name of the shard that the publisher sets aside for validation, or None. It never depends on how many
        other shards were fetched.
    ignored: files beside the shards that are not read, for people.
    facts: what identifies the data besides its bytes (versions, the hub's commit), for the run record.
    """

    name: str
    shards: tuple[SourceShard, ...]
    val_shard: str | None = None
    ignored: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    def local_path(self, shard: SourceShard, progress: Progress | None = None) -> Path:
        """Path of the shard's file on this machine; downloads and verifies it first where that is needed.

        Raises DataError where the shard cannot be had whole.
        """
        if shard.fetch is not None:
            return shard.fetch(progress)
        if shard.path is None:
            raise DataError(f"shard {shard.name} of {self.name} is not on this machine and cannot be fetched")
        return shard.path


@dataclass
class ReadCounts:
    """What was read, and what was skipped and why. One value may count many files.

    documents, text_bytes: documents given out and their UTF-8 bytes.
    skipped_null: no value (a null, or a JSON object without the field). skipped_empty: no character but white space.
    skipped_invalid_utf8: bytes or escapes that are not text. skipped_not_text: a number, a list, an object.
    skipped_invalid_json: a line that does not parse.
    examples: the first few skipped rows, each ``"file:row reason"``.
    """

    documents: int = 0
    text_bytes: int = 0
    skipped_null: int = 0
    skipped_empty: int = 0
    skipped_invalid_utf8: int = 0
    skipped_not_text: int = 0
    skipped_invalid_json: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Rows skipped, for any reason."""
        return sum(self.skipped_by_reason().values())

    def skipped_by_reason(self) -> dict[str, int]:
        """Rows skipped, by reason, without the zeros: ``{"null": 3}``."""
        counts = {
            "null": self.skipped_null,
            "empty": self.skipped_empty,
            "invalid_utf8": self.skipped_invalid_utf8,
            "not_text": self.skipped_not_text,
            "invalid_json": self.skipped_invalid_json,
        }
        return {reason: count for reason, count in counts.items() if count}

    def skip(self, reason: str, where: str, why: str) -> None:
        """Count one skipped row. reason: a field's name without ``skipped_``; where: ``"file:row"``."""
        field_name = f"skipped_{reason}"
        setattr(self, field_name, getattr(self, field_name) + 1)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{where} {why}")

    def add(self, other: ReadCounts) -> None:
        """Add another count, for totals over files that were read apart."""
        for name in self.__dataclass_fields__:
            if name != "examples":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]

    def to_dict(self) -> dict[str, int | list[str]]:
        return asdict(self)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``shard_9`` comes before ``shard_10``, whatever the digits' count; ties by the plain name.

    >>> sorted(["shard_10", "shard_9", "a"], key=natural_key)
    ['a', 'shard_9', 'shard_10']
    """
    parts = re.split(r"(\d+)", name)
    # Even places hold text, odd places digits; [0-9] alone would leave out the digits of other scripts that \d takes,
    # and int() reads those as well.
    key = [(0, 0, part) if i % 2 == 0 else (1, int(part), "") for i, part in enumerate(parts)]
    return [*key, (2, 0, name)]
