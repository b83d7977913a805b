"""Write all documents of a source into new, verified Parquet shards, with a record of what was skipped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.data.sources.base import Progress, ReadCounts, Source
from firstlight.data.sources.reading import read_documents
from firstlight.data.sources.writing import write_parquet
from firstlight.errors import ConfigError, DataError

RECORD_FILE = "import.json"


@dataclass
class _Feed:
    """Hands out a source's documents so that a shard can end after any of them."""

    documents: Iterator[str]
    next_text: str | None = None

    def peek(self) -> str | None:
        if self.next_text is None:
            self.next_text = next(self.documents, None)
        return self.next_text

    def take(self, max_bytes: int) -> Iterator[str]:
        """Documents until their bytes reach ``max_bytes`` (at least one)."""
        taken_bytes = 0
        while taken_bytes < max_bytes and (text := self.peek()) is not None:
            self.next_text = None
            taken_bytes += len(text.encode())
            yield text


def convert(source: Source, out: Path, *, shard_bytes: int, progress: Progress | None = None) -> dict[str, Any]:
    """Write the source's documents, in their order, to ``out/shard_00000.parquet`` and on; returns the record.

    shard_bytes: a shard ends with the document that reaches this many UTF-8 bytes of text. The record (also in
    ``out/import.json``) holds what was read, skipped and written. ``out`` appears whole or not at all.
    Raises ConfigError where ``out`` exists and is not empty; DataError where there is no document, a file is damaged
    or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists already", hint="name a new directory, or remove that one first")
    counts = ReadCounts()
    files: list[dict[str, Any]] = []

    def documents() -> Iterator[str]:
        for i, shard in enumerate(source.shards):
            before = counts.documents
            for _, text in read_documents(source.local_path(shard, progress), counts, name=shard.name):
                yield text
            files.append({"name": shard.name, "documents": counts.documents - before})
            if progress is not None:
                progress("converting files", i + 1, len(source.shards))

    temporary = out.with_name(f".{out.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        feed = _Feed(documents())
        shards = []
        while feed.peek() is not None:
            shards.append(write_parquet(temporary / f"shard_{len(shards):05d}.parquet", feed.take(shard_bytes)))
        if not shards:
            raise DataError(f"{source.name} has no documents: {counts.skipped} rows were empty or null")
        record = {
            "source": source.name, "documents": counts.documents, "text_bytes": counts.text_bytes,
            "skipped": counts.skipped_by_reason(), "skipped_examples": counts.examples,
            "files": files, "ignored": list(source.ignored), "shards": shards,
        }  # fmt: skip
        (temporary / RECORD_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        reason = "no space is left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise DataError(f"{out} cannot be written: {reason}", hint="choose another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record
