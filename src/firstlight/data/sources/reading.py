"""Read documents out of one file: Parquet, JSON lines, plain text; the last two also in gzip and Zstandard.

    .parquet                       one document per row of column ``text``
    .jsonl  .jsonl.gz  .jsonl.zst  one document per line: a JSON object with the field ``text``
    .txt    .txt.gz    .txt.zst    the whole file is one document; a line that holds only ``<|endoftext|>`` cuts it

Rows that are no text are skipped and counted, with their reason. A file that is damaged is an error that names it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from firstlight.data.sources.base import ReadCounts
from firstlight.errors import DataError

TEXT_COLUMN = "text"
DOCUMENT_SEPARATOR = "<|endoftext|>"
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".txt.gz", ".txt.zst")
KINDS_IN_WORDS = (
    ".parquet (column `text`), .jsonl or .jsonl.gz or .jsonl.zst (field `text`), .txt or .txt.gz or .txt.zst"
)

CHUNK_BYTES = 1 << 20
ROWS_AT_ONCE = 1024
FIRST_ROWS = 100
"""Rows of a JSON-lines file that are looked at before anything long starts; one of them must be usable."""


def suffix_of(name: str) -> str | None:
    """Which of SUFFIXES a file's name ends with, or None for a file that is not data."""
    lowered = name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if lowered.endswith(suffix)), None)


def check_file(path: Path, name: str | None = None) -> None:
    """Look at a file's outside before anything long starts: Parquet's footer and column, a compressed file's magic,
    the first lines of JSON lines.

    name: how messages name it, and what its kind is read from; the file's own name where None.
    Raises DataError naming the file where it is damaged, or has no column of texts.
    """
    name = name or path.name
    suffix = suffix_of(name)
    try:
        if suffix == ".parquet":
            with _open_parquet(path, name):
                return
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}", hint=f"the file is {path}") from error
    # Magic numbers: RFC 1952 section 2.3.1 and RFC 8878 section 3.1.1. An empty file holds no documents and is no error.
    for ending, magic, kind in ((".gz", b"\x1f\x8b", "gzip"), (".zst", b"\x28\xb5\x2f\xfd", "Zstandard")):
        if suffix and suffix.endswith(ending) and head and not head.startswith(magic):
            raise DataError(f"{name} is not a {kind} file: it starts with {head!r}", hint=f"the file is {path}")
    if suffix in (".jsonl", ".txt") and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{name} is UTF-16", hint=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}"
        )
    if suffix and suffix.startswith(".jsonl"):
        _check_first_lines(path, name)


def read_documents(path: Path, counts: ReadCounts, *, name: str | None = None) -> Iterator[tuple[int, str]]:
    """Give ``(row, text)`` for each document of a file; count them, and what is skipped, in ``counts``.

    row: counted from 0, with the skipped ones; the line of JSON lines, the document's number in a .txt file.
    name: how messages name the file (a shard's name); the file's own name where None.
    Raises DataError naming the file where it is damaged, of an unknown kind, without a column of texts, or where it
    has rows and every one of them is unusable (not JSON, no text, not UTF-8).
    """
    name = name or path.name
    check_file(path, name)
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "txt": _read_txt}
    suffix = suffix_of(name)
    if suffix is None:
        raise DataError(f"{name} is not a kind of file that can be read", hint=f"readable are {KINDS_IN_WORDS}")
    before = replace(counts)
    for row, text in readers[suffix.split(".")[1]](path, name, counts):
        if text is None:
            counts.skip("null", f"{name}:{row}", "has no text")
        elif not text or text.isspace():
            counts.skip("empty", f"{name}:{row}", "is empty")
        elif (num_bytes := _utf8_length(text)) is None:
            counts.skip("invalid_utf8", f"{name}:{row}", "holds half of a surrogate pair, which is not text")
        else:
            counts.documents += 1
            counts.text_bytes += num_bytes
            yield row, text
    if counts.documents == before.documents:
        _refuse_if_unusable(name, before, counts, "none of its")


def _refuse_if_unusable(name: str, before: ReadCounts, after: ReadCounts, none_of: str) -> None:
    """Raise DataError where all rows between two counts were skipped, some for a reason that is a mistake."""
    earlier = before.skipped_by_reason()
    skipped = {reason: n - earlier.get(reason, 0) for reason, n in after.skipped_by_reason().items()}
    skipped = {reason: n for reason, n in skipped.items() if n}
    # A file of nulls and empty texts is a poor file and no mistake; the source as a whole must still give a document.
    if skipped.keys() - {"null", "empty"}:
        why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in skipped.items())
        own_example = next((example for example in after.examples if example.startswith(f"{name}:")), "")
        raise DataError(f"{name}: {none_of} {sum(skipped.values())} rows can be used ({why})", hint=own_example)


def _check_first_lines(path: Path, name: str) -> None:
    """Refuse a JSON-lines file whose first rows are all unusable: a wrong field name must not come out mid-run."""
    counts = ReadCounts()
    if all(text is None for _, text in _read_jsonl(path, name, counts, max_rows=FIRST_ROWS)):
        _refuse_if_unusable(name, ReadCounts(), counts, "none of its first")


def _utf8_length(text: str) -> int | None:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


# Parquet


@contextmanager
def _open_parquet(path: Path, name: str) -> Iterator[pq.ParquetFile]:
    """A ParquetFile that is known to be whole at its end and to have a column of texts."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{name} is not a whole Parquet file ({path.stat().st_size:,} bytes): {_first_line(error)}",
            hint="it was probably cut short while it was written or copied: make or fetch it again",
        ) from error
    with file:
        schema = file.schema_arrow
        if TEXT_COLUMN not in schema.names:
            raise DataError(
                f"{name} has no column `{TEXT_COLUMN}`; its columns are {', '.join(schema.names) or '(none)'}",
                hint=f"rename the column that holds the documents to `{TEXT_COLUMN}`",
            )
        kind = schema.field(TEXT_COLUMN).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (_is_string(kind) or _is_binary(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"{name}: column `{TEXT_COLUMN}` holds {kind}, not text",
                hint="it must be of Parquet's string type (or bytes that are UTF-8)",
            )
        yield file


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _read_parquet(path: Path, name: str, counts: ReadCounts) -> Iterator[tuple[int, str | None]]:
    row = 0
    with _open_parquet(path, name) as file:
        batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[TEXT_COLUMN], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{name} is damaged near row {row}: {_first_line(error)}", hint="make or fetch it again"
                ) from error
            if batch is None:
                return
            for value in _to_python(batch.column(0)):
                # Bytes come from a column without Parquet's string mark, or from a batch that is not all UTF-8.
                if isinstance(value, bytes):
                    try:
                        value = value.decode()
                    except UnicodeDecodeError as error:
                        counts.skip("invalid_utf8", f"{name}:{row}", _why_not_utf8(error))
                        row += 1
                        continue
                yield row, value
                row += 1


def _to_python(column: pa.Array) -> list[str | bytes | None]:
    """Values of a column; as bytes where one of them is not UTF-8 (Arrow does not check when it reads)."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        wide = pa.types.is_large_string(column.type)
        return column.cast(pa.large_binary() if wide else pa.binary()).to_pylist()


# JSON lines and plain text


def _read_jsonl(
    path: Path, name: str, counts: ReadCounts, *, max_rows: int | None = None
) -> Iterator[tuple[int, str | None]]:
    for row, line in enumerate(islice(_lines(path, name), max_rows)):
        if not line.strip():
            continue
        where = f"{name}:{row}"
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            counts.skip("invalid_utf8", where, _why_not_utf8(error))
            continue
        except (ValueError, RecursionError) as error:
            counts.skip("invalid_json", where, f"(line {row + 1}) is not JSON: {_first_line(error)}")
            continue
        if not isinstance(record, dict):
            counts.skip("not_text", where, f"(line {row + 1}) is a JSON {_json_kind(record)}, not an object")
            continue
        text = record.get(TEXT_COLUMN)
        if text is not None and not isinstance(text, str):
            counts.skip("not_text", where, f"(line {row + 1}) has a {_json_kind(text)} in `{TEXT_COLUMN}`")
        elif TEXT_COLUMN not in record:
            fields = ", ".join(map(str, list(record)[:8])) or "(none)"
            counts.skip("not_text", where, f"(line {row + 1}) has no field `{TEXT_COLUMN}`; its fields are {fields}")
        else:
            yield row, text


def _json_kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = ((dict, "object"), (list, "array"), (str, "string"), ((int, float), "number"))
    return next((word for kind, word in kinds if isinstance(value, kind)), "null")


def _read_txt(path: Path, name: str, counts: ReadCounts) -> Iterator[tuple[int, str | None]]:
    separator = DOCUMENT_SEPARATOR.encode()
    row = 0
    pending: list[bytes] = []

    def document() -> Iterator[tuple[int, str | None]]:
        try:
            yield row, b"".join(pending).decode()
        except UnicodeDecodeError as error:
            counts.skip("invalid_utf8", f"{name}:{row}", _why_not_utf8(error))

    for line in _lines(path, name):
        if line.strip() == separator:
            yield from document()
            pending.clear()
            row += 1
        else:
            pending.append(line)
    # A separator at the file's end closes the last document; it does not open an empty one.
    if any(not line.isspace() for line in pending) or (row == 0 and pending):
        yield from document()


def _lines(path: Path, name: str) -> Iterator[bytes]:
    """Lines with their ends (``\\n`` only cuts, so a ``\\r`` stays); without a byte order mark at the file's start."""
    pending: list[bytes] = []
    first = True
    for chunk in _chunks(path, name):
        if first:
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
            first = False
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield b"".join([*pending, part, b"\n"])
            pending.clear()
        if rest:
            pending.append(rest)
    if pending:
        yield b"".join(pending)


def _chunks(path: Path, name: str) -> Iterator[bytes]:
    """The file's bytes, unpacked; none of the chunks is empty. Raises DataError where the packing is damaged or cut."""
    suffix = suffix_of(name) or ""
    given = 0
    try:
        if suffix.endswith(".gz"):
            with gzip.open(path, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                    given += len(chunk)
        elif suffix.endswith(".zst"):
            for chunk in _zstd_chunks(path):
                yield chunk
                given += len(chunk)
        else:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                    given += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{name} is damaged: {_first_line(error)} (after {given:,} bytes of text)", hint="make or fetch it again"
        ) from error


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Unpack all frames of a Zstandard file. (The library's own stream reader takes a cut file's end for its end.)"""
    with path.open("rb") as file:
        frame = zstandard.ZstdDecompressor().decompressobj()
        started = False
        while packed := file.read(CHUNK_BYTES):
            while packed:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                started = True
                if chunk := frame.decompress(packed):
                    yield chunk
                packed = frame.unused_data if frame.eof else b""
        if started and not frame.eof:
            raise EOFError("it ends in the middle of a frame")


def _why_not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
