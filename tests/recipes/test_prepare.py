"""Text to tokens: which documents train the tokenizer, what is cached by what, what is said about skips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.data.sources.base import ReadCounts
from firstlight.data.sources.resolve import open_source
from firstlight.data.store import content_hash
from firstlight.errors import ConfigError, DataError
from firstlight.recipes.prepare import (
    describe_skips,
    describe_source,
    prepare_data,
    resolve_source_val,
    tokenizer_for,
    training_texts,
)
from firstlight.runtime.console import Console


def prepare(corpus: Path, cache: Path, **changes):
    options = {
        "val": "last", "tokenizer_path": None, "vocab_size": 300, "num_workers": 0, "seed": 1, "packing": "bestfit",
        "seq_len": 32, "console": Console(),
    }  # fmt: skip
    return prepare_data(str(corpus), cache_dir=cache, **(options | changes))


def test_validation_documents_never_train_the_tokenizer(tiny_corpus, tmp_path):
    source = open_source(str(tiny_corpus), cache_dir=tmp_path)
    texts = [json.loads(line)["text"] for path in sorted(tiny_corpus.iterdir()) for line in path.open()]
    last = list(training_texts(source, resolve_source_val(source, "last"), counts=ReadCounts()))
    assert sorted(last) == sorted(texts[:120])
    by_hash = list(training_texts(source, resolve_source_val(source, "hash:0.2"), counts=ReadCounts()))
    held_out = [text for text in texts if content_hash(text.encode()) < int(0.2 * 2**64)]
    assert 10 < len(held_out) < 100
    assert sorted(by_hash + held_out) == sorted(texts)


def test_blocks_of_all_shards_come_in_turn(tiny_corpus, tmp_path):
    source = open_source(str(tiny_corpus), cache_dir=tmp_path)
    order = list(training_texts(source, resolve_source_val(source, "hash:0.01"), counts=ReadCounts()))
    second = [json.loads(line)["text"] for line in (tiny_corpus / "part_1.jsonl").open()]
    assert any(text in second for text in order[:128])


def test_second_run_takes_tokenizer_and_tokens_from_the_cache(tiny_corpus, tmp_path, monkeypatch):
    with prepare(tiny_corpus, tmp_path / "cache").store as store:
        first = [store.shard(i).num_tokens for i in range(2)]
    monkeypatch.setattr("firstlight.recipes.prepare.train_tokenizer", lambda *a, **k: pytest.fail("trained again"))
    again = prepare(tiny_corpus, tmp_path / "cache")
    assert again.store.is_complete
    assert [again.store.shard(i).num_tokens for i in range(2)] == first


def test_changed_text_gets_another_tokenizer(tiny_corpus, tmp_path, monkeypatch):
    prepare(tiny_corpus, tmp_path / "cache").store.close()
    shard = tiny_corpus / "part_0.jsonl"
    shard.write_text(shard.read_text().replace("cat", "cow"))
    source = open_source(str(tiny_corpus), cache_dir=tmp_path)
    trained = []
    real = __import__("firstlight.recipes.prepare", fromlist=["x"]).train_tokenizer
    monkeypatch.setattr(
        "firstlight.recipes.prepare.train_tokenizer", lambda *a, **k: trained.append(1) or real(*a, **k)
    )
    val = resolve_source_val(source, "last")
    tokenizer_for(source, val, vocab_size=300, cache_dir=tmp_path / "cache", console=Console())
    assert trained == [1]


def test_default_split_is_by_hash_and_one_file_with_last_is_refused(tiny_corpus, tmp_path):
    source = open_source(str(tiny_corpus), cache_dir=tmp_path)
    assert str(resolve_source_val(source, None)) == "hash:0.01"
    single = open_source(str(tiny_corpus / "part_0.jsonl"), cache_dir=tmp_path)
    with pytest.raises(DataError, match="nothing would be left to train on"):
        resolve_source_val(single, "last")
    with pytest.raises(ConfigError, match="part_2"):
        resolve_source_val(source, "part_2.jsonl")


def test_skipped_rows_are_counted_and_named(tiny_corpus, tmp_path):
    with (tiny_corpus / "part_0.jsonl").open("a") as file:
        file.write('{"text": null}\n{"text": ""}\nnot json\n')
    with prepare(tiny_corpus, tmp_path / "cache").store as store:
        list(store.shards())
        said = describe_skips(store)
    assert "rows skipped: 3 (1 null, 1 empty, 1 invalid json)" in said
    assert "part_0.jsonl:120" in said


def test_nothing_skipped_is_nothing_said(tiny_corpus, tmp_path):
    with prepare(tiny_corpus, tmp_path / "cache").store as store:
        list(store.shards())
        assert describe_skips(store) is None


def test_a_cache_that_cannot_be_written_is_one_clear_message(tiny_corpus, tmp_path):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(DataError, match="FIRSTLIGHT_CACHE"):
        prepare(tiny_corpus, tmp_path / "a_file" / "cache")


def test_source_in_one_line(tiny_corpus, tmp_path):
    assert "2 shards" in describe_source(open_source(str(tiny_corpus), cache_dir=tmp_path))
