"""Import: the same documents in the same order, in verified shards, with everything skipped on record."""

from __future__ import annotations

import errno
import hashlib
import json

import pyarrow.parquet as pq
import pytest

from firstlight.data.sources import convert as convert_module
from firstlight.data.sources.convert import convert
from firstlight.data.sources.directory import open_directory
from firstlight.errors import ConfigError, DataError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps({"text": f"document {i} " + "x" * (i % 50)}) for i in range(3000)]
    (folder / "a.jsonl").write_text("\n".join([*lines, "not json", '{"text": null}']))
    (folder / "b.txt").write_text("the last one")
    (folder / "README.md").write_text("about")
    return open_directory(folder)


def shard_texts(out):
    return [text for path in sorted(out.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]


def test_documents_keep_their_order_over_shards_of_the_size_asked_for(source, tmp_path):
    out = tmp_path / "out"
    record = convert(source, out, shard_bytes=20_000)
    expected = [f"document {i} " + "x" * (i % 50) for i in range(3000)] + ["the last one"]
    assert shard_texts(out) == expected
    assert record["documents"] == 3001
    assert record["text_bytes"] == sum(map(len, expected))
    sizes = [shard["text_bytes"] for shard in record["shards"]]
    assert all(20_000 <= size < 20_100 for size in sizes[:-1])
    for shard in record["shards"]:
        assert hashlib.sha256((out / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]


def test_what_was_skipped_and_left_is_in_the_record_beside_the_shards(source, tmp_path):
    record = convert(source, tmp_path / "out", shard_bytes=10**9)
    assert record["skipped"] == {"null": 1, "invalid_json": 1}
    assert record["skipped_examples"][1] == "a.jsonl:3001 has no text"
    assert record["ignored"] == ["README.md"]
    assert record["files"] == [{"name": "a.jsonl", "documents": 3000}, {"name": "b.txt", "documents": 1}]
    assert json.loads((tmp_path / "out" / "import.json").read_text()) == record


def test_an_imported_directory_is_a_source(source, tmp_path):
    convert(source, tmp_path / "out", shard_bytes=50_000)
    again = open_directory(tmp_path / "out")
    assert again.shards[0].name == "shard_00000.parquet"
    assert again.ignored == ("import.json",)


def test_a_directory_with_something_in_it_is_not_written_to(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"--out .*out exists already"):
        convert(source, tmp_path / "out", shard_bytes=1000)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_directory_may_be_used(source, tmp_path):
    (tmp_path / "out").mkdir()
    assert convert(source, tmp_path / "out", shard_bytes=10**9)["documents"] == 3001


def test_a_full_disk_leaves_nothing_half_written(source, tmp_path, monkeypatch):
    def full(path, texts):
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert_module, "write_parquet", full)
    with pytest.raises(DataError, match=r"out cannot be written: no space is left"):
        convert(source, tmp_path / "out", shard_bytes=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_source_without_a_document_is_an_error(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    with pytest.raises(DataError, match=r"has no documents: 2 rows were empty or null"):
        convert(open_directory(tmp_path / "in.jsonl"), tmp_path / "out", shard_bytes=1000)
    assert not (tmp_path / "out").exists()
