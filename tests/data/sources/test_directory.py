"""A user's own folder: one order, every file either read or listed, damage named before anything starts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstlight.data.sources.directory import open_directory
from firstlight.errors import DataError


def put(folder, name, data=b"text"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put_parquet(folder, name, texts):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)


def names(source):
    return [shard.name for shard in source.shards]


def test_all_folders_and_kinds_are_found_in_natural_order(tmp_path):
    put(tmp_path, "b/part_10.txt")
    put(tmp_path, "b/part_9.txt")
    put(tmp_path, "a/deep/er/x.jsonl", b'{"text": "x"}\n')
    put_parquet(tmp_path, "shard_00000.parquet", ["x"])
    source = open_directory(tmp_path)
    assert names(source) == ["a/deep/er/x.jsonl", "b/part_9.txt", "b/part_10.txt", "shard_00000.parquet"]
    assert source.val_shard is None
    assert [shard.num_bytes for shard in source.shards[:3]] == [14, 4, 4]
    assert source.local_path(source.shards[1]) == tmp_path / "b" / "part_9.txt"


def test_hidden_files_are_left_alone_and_other_kinds_are_listed(tmp_path):
    for name in (".hidden.txt", ".cache/x.txt", "README.md", "sub/notes.json", "x.txt.incomplete", "ok.txt"):
        put(tmp_path, name)
    source = open_directory(tmp_path)
    assert names(source) == ["ok.txt"]
    assert source.ignored == ("README.md", "sub/notes.json", "x.txt.incomplete")


def test_a_single_file_is_a_source(tmp_path):
    put(tmp_path, "book.txt")
    assert names(open_directory(tmp_path / "book.txt")) == ["book.txt"]


def test_an_empty_directory_is_an_error_that_says_what_is_looked_for(tmp_path):
    with pytest.raises(DataError, match="has no text to read, and it is empty") as caught:
        open_directory(tmp_path)
    assert str(tmp_path) in caught.value.what
    assert ".parquet" in caught.value.hint
    assert ".jsonl" in caught.value.hint


def test_a_directory_of_other_files_is_an_error_that_names_some(tmp_path):
    for i in range(9):
        put(tmp_path, f"page_{i}.html")
    with pytest.raises(DataError, match=r"it holds page_0\.html, page_1\.html.* and 4 more"):
        open_directory(tmp_path)


def test_a_file_of_an_unknown_kind_and_a_missing_one_are_errors(tmp_path):
    put(tmp_path, "x.csv")
    with pytest.raises(DataError, match=r"x\.csv is not a kind of file"):
        open_directory(tmp_path / "x.csv")
    with pytest.raises(DataError, match="does not exist"):
        open_directory(tmp_path / "nothing")


def test_a_truncated_parquet_among_good_ones_is_named_at_once(tmp_path):
    for i in range(3):
        put_parquet(tmp_path, f"shard_{i}.parquet", ["some text"] * 100)
    cut = tmp_path / "shard_1.parquet"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(DataError, match=r"shard_1\.parquet is not a whole Parquet file"):
        open_directory(tmp_path)


def test_links_are_followed_and_a_circle_of_them_ends(tmp_path):
    put(tmp_path, "elsewhere/x.txt")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(corpus)
    source = open_directory(corpus)
    assert names(source) == ["linked/x.txt"]
    assert source.ignored == ("linked/back/ (a link to a folder that is read already)",)


def test_the_order_of_shards_does_not_depend_on_the_order_of_creation(tmp_path):
    for folder, order in (("one", range(20)), ("two", reversed(range(20)))):
        for i in order:
            put(tmp_path / folder, f"{i}.txt")
    assert (
        names(open_directory(tmp_path / "one"))
        == names(open_directory(tmp_path / "two"))
        == [f"{i}.txt" for i in range(20)]
    )
