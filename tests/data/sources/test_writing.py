"""Shards as they are written: row groups, compression, checksums, and what is said about them."""

from __future__ import annotations

import hashlib

import pyarrow.parquet as pq

from firstlight.data.sources.writing import write_parquet


def test_row_groups_hold_1024_rows_in_zstandard(tmp_path):
    texts = [f"document {i} é" for i in range(2500)]
    facts = write_parquet(tmp_path / "a.parquet", iter(texts))
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1024, 1024, 452]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert pq.read_table(tmp_path / "a.parquet").to_pydict() == {"text": texts}
    data = (tmp_path / "a.parquet").read_bytes()
    assert facts == {
        "name": "a.parquet", "documents": 2500, "text_bytes": sum(len(text.encode()) for text in texts),
        "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


def test_the_same_texts_give_the_same_bytes(tmp_path):
    one, two = (write_parquet(tmp_path / name, ["x", "y"])["sha256"] for name in ("one.parquet", "two.parquet"))
    assert one == two
