"""Text to tokens: which documents train the tokenizer, what is cached by what, what is said about skips."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks

from firstlight.data.sources.base import ReadCounts
from firstlight.data.sources.resolve import open_source
from firstlight.data.store import content_hash
from firstlight.errors import ConfigError, DataError
from firstlight.recipes.prepare import (
    describe_skips,
    describe_source,
    prepare_data,
    prepare_data_together,
    resolve_source_val,
    tokenizer_for,
    training_texts,
)
from firstlight.runtime.console import Console
from firstlight.tokens.bpe import Tokenizer

OPTIONS = {
    "val": "last", "tokenizer_path": None, "vocab_size": 300, "num_workers": 0, "seed": 1, "packing": "bestfit",
    "seq_len": 32,
}  # fmt: skip


def prepare(corpus: Path, cache: Path, **changes):
    return prepare_data(str(corpus), cache_dir=cache, **(OPTIONS | {"console": Console()} | changes))


def prepare_on_ranks(runtime, corpus: Path, caches: list[Path], local_ranks: list[int], tokenizer: Path | None = None):
    """What this rank tokenised, and the store that it has at the end. caches, local_ranks: of each rank."""
    from firstlight.data import build_pool

    built = []
    real = build_pool.PoolBuilder.__init__

    def spy(self, jobs, **options):
        built.extend(job.index for job in jobs)
        real(self, jobs, **options)

    build_pool.PoolBuilder.__init__ = spy
    runtime = replace(runtime, local_rank=local_ranks[runtime.rank])
    console = Console(is_main=runtime.is_main)
    options = OPTIONS | {"console": console, "runtime": runtime, "cache_dir": caches[runtime.rank]}
    options["tokenizer_path"] = tokenizer
    try:
        data = prepare_data_together(str(corpus), **options)
    except DataError as error:
        return str(error)
    finally:
        build_pool.PoolBuilder.__init__ = real
    with data.store as store:
        num_tokens = [store.shard(i).num_tokens for i in range(store.num_shards)]
        return built, str(store.directory), num_tokens, data.tokenizer.content_hash, store.data_hash


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


@pytest.fixture
def five_shards(tiny_corpus: Path) -> Path:
    for shard in range(2, 5):
        text = (tiny_corpus / "part_0.jsonl").read_text().replace("cat", "cow" * shard)
        (tiny_corpus / f"part_{shard}.jsonl").write_text(text)
    return tiny_corpus


def test_machines_with_one_cache_share_the_shards_and_end_with_the_store_of_one_process(five_shards, tmp_path):
    with prepare(five_shards, tmp_path / "alone").store as store:
        expected = [shard.num_tokens for shard in store.shards()]
    # Two machines of two processes each: ranks 0 and 2 are the first of their machine.
    ranks = run_ranks(prepare_on_ranks, 4, five_shards, [tmp_path / "shared"] * 4, [0, 1, 0, 1])
    parts = [built for built, *_ in ranks]
    assert sorted(len(part) for part in parts) == [0, 0, 2, 3]
    assert parts[1] == parts[3] == []
    assert sorted(parts[0] + parts[2]) == [0, 1, 2, 3, 4], "each shard is built once"
    assert [num_tokens for _, _, num_tokens, *_ in ranks] == [expected] * 4
    assert len({directory for _, directory, *_ in ranks}) == 1
    again = run_ranks(prepare_on_ranks, 2, five_shards, [tmp_path / "shared"] * 2, [0, 0])
    assert [built for built, *_ in again] == [[], []], "what is tokenised stays so"


def test_machines_with_caches_of_their_own_build_everything_and_agree(five_shards, tmp_path):
    caches = [tmp_path / "a", tmp_path / "b", tmp_path / "a"]
    ranks = run_ranks(prepare_on_ranks, 3, five_shards, caches, [0, 0, 1])
    assert [sorted(built) for built, *_ in ranks] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], []]
    assert Counter(directory for _, directory, *_ in ranks)[ranks[0][1]] == 2
    assert len({(tokenizer_hash, data_hash) for *_, tokenizer_hash, data_hash in ranks}) == 1


def test_a_damaged_file_that_one_machine_finds_is_an_error_on_all(five_shards, tmp_path):
    whole = gzip.compress((five_shards / "part_3.jsonl").read_bytes())
    (five_shards / "part_3.jsonl").unlink()
    (five_shards / "part_3.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    # The tokenizer is given, so that only who tokenises the file reads it.
    Tokenizer([bytes([b]) for b in range(256)]).save(tmp_path / "tokenizer.json")
    caches = [tmp_path / "shared"] * 2
    said = run_ranks(prepare_on_ranks, 2, five_shards, caches, [0, 0], tmp_path / "tokenizer.json")
    assert all("part_3.jsonl.gz" in each for each in said), said
    assert sorted("rank" in each for each in said) == [False, True], "who did not read it says whose error it is"
