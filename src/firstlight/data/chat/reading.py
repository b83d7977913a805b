"""Read conversations out of one file: JSON lines (also in gzip and Zstandard) or Parquet. The forms are in ``formats.py``.

Rows that give no conversation are skipped and counted, with their reason. A file that is damaged is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firstlight.data.chat.counts import ConversationCounts
from firstlight.data.chat.formats import FIELDS, BadConversation, ReadRow, read_row
from firstlight.data.sources import reading as text_files
from firstlight.errors import DataError
from firstlight.tokens.conversation import Message

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
KINDS_IN_WORDS = ".jsonl, .jsonl.gz, .jsonl.zst or .parquet"
FIRST_ROWS = 100
"""Rows of a file that are looked at before anything long starts; one of them must give a conversation."""


def suffix_of(name: str) -> str | None:
    """Which of SUFFIXES a file's name ends with, or None for a file that holds no conversations."""
    lowered = name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if lowered.endswith(suffix)), None)


def check_file(path: Path, name: str) -> None:
    """Look at a file's first rows before anything long starts. Raises DataError naming it where none can be used."""
    for _ in _conversations(path, ConversationCounts(), name, FIRST_ROWS):
        return


def check_whole(path: Path, name: str) -> None:
    """Look at a downloaded file's end, where it is Parquet. Raises DataError where it is not whole."""
    if suffix_of(name) == ".parquet":
        try:
            pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name} is not a whole Parquet file: {text_files._first_line(error)}") from error


def read_conversations(
    path: Path, counts: ConversationCounts, *, name: str | None = None
) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Give ``("file:row", messages)`` for each conversation of a file; count them, and what is skipped, in ``counts``.

    Rows are counted from 0, with the skipped ones. name: how messages name the file; its own name where None.
    Raises DataError naming the file where it is damaged, of another kind, or has rows and none gives a conversation.
    """
    return _conversations(path, counts, name or path.name, None)


def _conversations(
    path: Path, counts: ConversationCounts, name: str, max_rows: int | None
) -> Iterator[tuple[str, tuple[Message, ...]]]:
    found = 0
    own = ConversationCounts()  # of this file alone, for the error
    for row, value in islice(_rows(path, name), max_rows):
        where = f"{name}:{row}"
        try:
            if isinstance(value, BadConversation):
                raise value
            read = read_row(value)
        except BadConversation as bad:
            counts.skip(bad.reason, where, bad.why)
            own.skip(bad.reason, where, bad.why)
            continue
        found += 1
        _count(counts, read, name)
        yield where, read.messages
    if not found and own.skipped:
        which = "none of its" if max_rows is None else "none of its first"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in own.skipped.items())
        raise DataError(
            f"{name}: {which} {own.num_skipped:,} rows gives a conversation ({reasons})",
            hint=next(iter(own.examples.values()))[0],
        )


def _count(counts: ConversationCounts, read: ReadRow, name: str) -> None:
    counts.conversations += 1
    counts.messages += len(read.messages)
    counts.text_bytes += text_bytes(read.messages)
    counts.change(read.changes)
    counts.add_form(name, read.form)


def text_bytes(messages: Sequence[Message]) -> int:
    """Bytes of UTF-8 in all parts of some messages."""
    texts = (part.text for message in messages for part in message.parts)
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def _rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    suffix = suffix_of(name)
    if suffix is None:
        raise DataError(f"{name} is not a kind of file that can be read", hint=f"conversations are in {KINDS_IN_WORDS}")
    try:
        yield from (_parquet_rows if suffix == ".parquet" else _json_rows)(path, name)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}", hint=f"the file is {path}") from error


def _json_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(text_files._lines(path, name)):
        if not line.strip():
            continue
        try:
            yield row, json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield row, BadConversation("invalid_utf8", text_files._why_not_utf8(error))
        except (ValueError, RecursionError) as error:
            yield row, BadConversation("invalid_json", f"(line {row + 1}) is not JSON: {text_files._first_line(error)}")


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    row = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            columns = [column for column in names if column in FIELDS]
            if not columns:
                raise DataError(
                    f"{name} has no column of conversations; its columns are {', '.join(names) or '(none)'}",
                    hint="it needs `messages`, `conversations` or `conversation`, or `instruction` and `output`",
                )
            for batch in file.iter_batches(batch_size=text_files.ROWS_AT_ONCE, columns=columns, use_threads=False):
                for value in _python_rows(batch):
                    yield row, value
                    row += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{name} is damaged near row {row}: {text_files._first_line(error)}", hint="make or fetch it again"
        ) from error


def _python_rows(batch: pa.RecordBatch) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # One row that is not UTF-8 spoils the whole batch (Arrow does not check when it reads): row by row, then.
        for i in range(len(batch)):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield BadConversation("invalid_utf8", text_files._why_not_utf8(error))
