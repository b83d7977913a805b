"""Numbers about text on disk, against hand-made counts."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from firstlight.data.measure import measure_text, percentiles
from firstlight.data.sources.base import Source, SourceShard
from firstlight.data.sources.directory import open_directory
from firstlight.errors import DataError


def test_documents_bytes_skips_and_hashes_are_those_of_the_files(tmp_path):
    (tmp_path / "a.txt").write_text("äö")
    (tmp_path / "b.jsonl").write_text('{"text": "123"}\n{"text": null}\n')
    found = measure_text(open_directory(tmp_path))
    assert (found["documents"], found["text_bytes"], found["skipped"]) == (2, 7, {"null": 1})
    sums = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.txt", "b.jsonl")]
    assert [shard["sha256"] for shard in found["shards"]] == sums
    assert found["data_hash"] == hashlib.sha256(f"a.txt\0{sums[0]}\nb.jsonl\0{sums[1]}\n".encode()).hexdigest()
    assert found["document_bytes_percentiles"]["p100"] == 4


def test_percentiles_are_lengths_that_occur():
    assert percentiles(np.arange(1, 101)) == {
        "p0": 1, "p1": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "p100": 100,
    }  # fmt: skip


def test_shards_that_are_not_here_are_named_and_not_counted(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    here = SourceShard("a.txt", tmp_path / "a.txt")
    found = measure_text(Source("set", (here, SourceShard("far.parquet", None))))
    assert (found["documents"], found["not_fetched"]) == (1, ["far.parquet"])
    with pytest.raises(DataError, match="nothing of set is on this machine yet") as caught:
        measure_text(Source("set", (SourceShard("far.parquet", None),)))
    assert caught.value.hint == "firstlight data fetch set"


def test_a_source_without_a_document_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="has no documents: 1 rows were empty or null"):
        measure_text(open_directory(tmp_path))
