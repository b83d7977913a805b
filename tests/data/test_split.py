"""The validation split: by the text's hash or by shard, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from firstlight.data.build import build_store
from firstlight.data.split import (
    ValSpec,
    iter_documents,
    parse_val,
    resolve_val,
    split_documents,
    val_content_hash,
    val_documents,
    val_mask,
)
from firstlight.errors import ConfigError, DataError

NAMES = ["a/part_0.parquet", "a/part_1.parquet", "b/part_10.parquet"]


def hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def texts(store, val, split) -> list[str]:
    return [bytes(document.ids.astype(np.uint8)).decode() for document, _ in iter_documents(store, val, split=split)]


@pytest.fixture
def build(make_source, byte_tokenizer, tmp_path):
    def build(files, folder="corpus"):
        return build_store(make_source(files, folder), byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)

    return build


def test_val_is_read_from_the_flag():
    assert parse_val("last") == ValSpec("last")
    assert parse_val("hash:0.01") == ValSpec("hash", fraction=0.01)
    assert parse_val("part_1.parquet") == ValSpec("shard", shard="part_1.parquet")
    assert [str(parse_val(text)) for text in ("last", "hash:0.25", "x.txt")] == ["last", "hash:0.25", "x.txt"]


@pytest.mark.parametrize("text", ["hash:0", "hash:0.51", "hash:-1", "hash:nan", "hash:", "hash:many", "hash:inf", ""])
def test_a_fraction_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--val") as caught:
        parse_val(text)
    assert "hash:0.01" in caught.value.hint


def test_last_is_the_last_shard_or_the_one_the_source_sets_aside():
    assert resolve_val("last", NAMES).shard == NAMES[2]
    assert resolve_val("last", NAMES, pinned=NAMES[0]).shard == NAMES[0]
    assert resolve_val("last", NAMES, pinned="not here").shard == NAMES[2]


def test_a_shard_may_be_named_in_short():
    for short in (NAMES[1], "part_1.parquet", "part_1"):
        assert resolve_val(short, NAMES).shard == NAMES[1]
    with pytest.raises(ConfigError, match="fits 2 files"):
        resolve_val("part", ["a/part.txt", "b/part.txt"])


def test_a_name_that_fits_no_shard_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no such file") as caught:
        resolve_val("a/prat_1.parquet", NAMES)
    assert "did you mean a/part_1.parquet" in caught.value.hint


@pytest.mark.parametrize("val", ["last", "only.txt"])
def test_one_file_cannot_be_both_training_and_validation(val):
    with pytest.raises(DataError, match=r"nothing would be left to train on") as caught:
        resolve_val(val, ["only.txt"])
    assert "hash:0.01" in caught.value.hint
    assert resolve_val("hash:0.1", ["only.txt"]).kind == "hash"


def test_hash_split_goes_by_the_hash_of_the_text(build):
    store = build([[f"text {i}" for i in range(300)], [f"other {i}" for i in range(200)]])
    everything = [f"text {i}" for i in range(300)] + [f"other {i}" for i in range(200)]
    expected = [text for text in everything if hashed(text) < 0.1 * 2**64]
    assert texts(store, "hash:0.1", "val") == expected
    assert texts(store, "hash:0.1", "train") == [text for text in everything if text not in expected]
    # 500 documents at 0.1: mean 50, standard deviation 6.7.
    assert 25 < len(expected) < 75


def test_copies_of_a_text_are_on_the_same_side(build):
    store = build([["twin"] * 3 + [f"x{i}" for i in range(20)], ["twin"]])
    for fraction in np.linspace(0.01, 0.5, 25):
        sides = {split for split in ("train", "val") if "twin" in _texts_or_none(store, f"hash:{fraction}", split)}
        assert len(sides) == 1


def _texts_or_none(store, val, split):
    try:
        return texts(store, val, split)
    except DataError:
        return []


def test_more_files_never_move_a_document_to_the_other_side(build):
    """Report 13: validation was whatever file came last, so the score changed with the number of files."""
    files = [[f"{k} {i}" for i in range(100)] for k in range(5)]
    few, many = (set(texts(build(files[:n], f"corpus_{n}"), "hash:0.2", "val")) for n in (3, 5))
    assert few == {text for text in many if int(text[0]) < 3}


def test_an_explicit_shard_gives_the_same_validation_set_whatever_else_is_there(build):
    """Report 13, with a named shard."""
    files = [[f"{k} {i}" for i in range(10)] for k in range(5)]
    hashes = {val_content_hash(build(files[:n], f"corpus_{n}"), "part_1.jsonl") for n in (3, 5)}
    assert len(hashes) == 1


def test_shard_split_gives_each_document_to_one_side(build):
    store = build([["a", "b"], ["c"], ["d"]])
    assert (texts(store, "part_1.jsonl", "val"), texts(store, "part_1.jsonl", "train")) == (["c"], ["a", "b", "d"])
    shard = store.shard(0)
    assert split_documents(shard, ValSpec("shard", shard="part_0.jsonl"), "val").tolist() == [0, 1]


def test_validation_documents_say_where_they_come_from_and_how_long_their_text_is(build):
    store = build([["a"], ["", "zwölf", "🐕"]])
    found = list(iter_documents(store, "last"))
    assert [(document.source, num_bytes) for document, num_bytes in found] == [
        ("part_1.jsonl:1", 6),
        ("part_1.jsonl:2", 4),
    ]
    assert [document.source for document in val_documents(store, "last")] == ["part_1.jsonl:1", "part_1.jsonl:2"]


def test_validation_content_hash_is_that_of_the_sorted_hashes(build):
    store = build([["a"], ["b", "c", "d"]])
    expected = hashlib.sha256(np.sort(np.array([hashed(t) for t in "bcd"], dtype="<u8")).tobytes()).hexdigest()
    assert val_content_hash(store, "last") == expected
    assert val_content_hash(build([["x"], ["d", "b", "c"]], "again"), "last") == expected


@pytest.mark.parametrize("read", [lambda *a: list(val_documents(*a)), val_content_hash])
def test_no_validation_document_is_an_error_that_says_what_to_do(build, read):
    with pytest.raises(DataError, match="no validation document") as caught:
        read(build([["a"], []]), "last")
    assert "hash:0.01" in caught.value.hint
    with pytest.raises(DataError, match="no validation document") as caught:
        read(build([["a"], ["b"]], "again"), "hash:0.000001")
    assert "larger fraction" in caught.value.hint


def test_the_mask_has_an_entry_for_each_document():
    hashes = np.array([0, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert val_mask(hashes, ValSpec("hash", fraction=0.5), "x").tolist() == [True, True, False, False]
    assert val_mask(hashes, ValSpec("shard", shard="x"), "x").tolist() == [True] * 4
    assert val_mask(hashes, ValSpec("shard", shard="x"), "y").tolist() == [False] * 4
