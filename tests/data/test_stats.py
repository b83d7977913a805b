from __future__ import annotations

import json

import pytest

from firstlight.data.build import build_store
from firstlight.data.stats import store_stats


@pytest.fixture
def stats(make_source, byte_tokenizer, tmp_path):
    source = make_source([["abcd", "abcd", "é", ""], ["x" * 10]])
    store = build_store(source, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)
    return store_stats(store, seq_len=4, val_spec="last")


def test_counts_are_those_of_the_texts(stats):
    assert (stats["documents"], stats["tokens"], stats["text_bytes"], stats["bytes_per_token"]) == (4, 20, 20, 1.0)
    assert stats["duplicate_documents"] == 1
    assert stats["skipped"] == {"empty": 1}
    assert stats["skipped_examples"][0].startswith("part_0.jsonl:3")
    assert [shard["documents"] for shard in stats["shards"]] == [3, 1]
    lengths = stats["tokens_per_document"]
    assert (lengths["mean"], lengths["p0"], lengths["p50"], lengths["p100"]) == (5.0, 2.0, 4.0, 10.0)


def test_sides_of_the_split_add_up(stats):
    assert (stats["train"]["tokens"], stats["val"]["tokens"]) == (10, 10)
    assert (stats["val"]["spec"], stats["val"]["documents"]) == ("part_1.jsonl", 1)
    assert len(stats["val"]["content_hash"]) == 64


def test_packing_is_that_of_the_training_side(stats):
    # Sizes with BOS 5, 5, 3 in rows of 5: two full rows and one with two places of padding.
    bestfit = stats["packing"]["bestfit"]
    assert (bestfit["rows"], bestfit["positions_padded"], bestfit["crops"]) == (3, 2, 0)
    assert (bestfit["tokens_used_frac"], bestfit["tokens_dropped"], bestfit["rows_begin_at_bos_frac"]) == (1.0, 0, 1.0)
    assert bestfit["positions_filled_frac"] == pytest.approx(13 / 15)
    # 13 ids in a line, 12 targets in rows of 4.
    assert (stats["packing"]["stream"]["rows"], stats["packing"]["stream"]["positions_padded"]) == (3, 0)


def test_all_can_be_written_as_json_even_of_an_empty_store(stats, make_source, byte_tokenizer, tmp_path):
    json.dumps(stats, allow_nan=False)
    empty = build_store(make_source([[], []], "none"), byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)
    found = store_stats(empty, seq_len=4)
    assert (found["documents"], found["bytes_per_token"], found["packing"]["bestfit"]["tokens_used_frac"]) == (
        0,
        None,
        None,
    )
    json.dumps(found, allow_nan=False)
