"""Write documents as Parquet shards: one column ``text``, Zstandard, row groups of 1024, page checksums."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from firstlight.data.sources.reading import TEXT_COLUMN
from firstlight.data.store import hash_file

ROW_GROUP_ROWS = 1024
SCHEMA = pa.schema([pa.field(TEXT_COLUMN, pa.string(), nullable=False)])


def write_parquet(path: Path, texts: Iterable[str]) -> dict[str, str | int]:
    """Write one shard, and read its footer again; returns its name, documents, text_bytes, num_bytes and sha256.

    Raises OSError where the disk is full or the folder may not be written.
    """
    documents = text_bytes = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        rest = iter(texts)
        while group := list(islice(rest, ROW_GROUP_ROWS)):
            writer.write_table(pa.table({TEXT_COLUMN: group}, schema=SCHEMA))
            documents += len(group)
            text_bytes += sum(len(text.encode()) for text in group)
    assert pq.read_metadata(path).num_rows == documents
    return {
        "name": path.name,
        "documents": documents,
        "text_bytes": text_bytes,
        "num_bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }
