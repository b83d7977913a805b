"""The rows of an epoch: their ids, their order, their documents."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.data.build import build_store
from firstlight.data.packing import pack
from firstlight.data.rows import PAD, RowRecipe, epoch_rows
from firstlight.data.split import ValSpec
from firstlight.errors import DataError

BOS = 256


@pytest.fixture
def store(three_files, byte_tokenizer, tmp_path):
    return build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)


def recipe(**changes) -> RowRecipe:
    settings = {"val": ValSpec("shard", shard="part_2.jsonl"), "split": "train", "packing": "bestfit", "row_len": 9}
    return RowRecipe(**(settings | {"seed": 5, "bos_id": BOS} | changes))


@pytest.mark.parametrize("packing", ["bestfit", "stream"])
@pytest.mark.parametrize("val", [ValSpec("shard", shard="part_2.jsonl"), ValSpec("hash", fraction=0.3)])
def test_ids_are_those_that_the_segments_name(store, packing, val):
    shard = store.shard(1)
    rows = recipe(packing=packing, val=val).rows_of(shard, epoch=0)
    assert len(rows.docs) == 40 if val.kind == "shard" else 0 < len(rows.docs) < 40
    ids_NL = rows.ids(np.arange(rows.num_rows))
    for i, packed_row in enumerate(rows.order.tolist()):
        expected: list[int] = []
        for doc, start, stop, with_bos in rows.packed.row(packed_row):
            expected += [BOS] * with_bos + shard.ids(int(rows.docs[doc])).tolist()[start:stop]
        assert ids_NL[i].tolist() == expected + [PAD] * (9 - len(expected))


def test_only_shards_of_the_split_are_in_the_order():
    names = [f"part_{i}.jsonl" for i in range(5)]
    for epoch in range(5):
        assert sorted(recipe().shard_order(names, epoch)) == [0, 1, 3, 4]
        assert recipe(split="val").shard_order(names, epoch) == [2]
        assert sorted(recipe(val=ValSpec("hash", fraction=0.1)).shard_order(names, epoch)) == list(range(5))


def test_order_and_neighbours_change_with_seed_epoch_and_shard(store):
    names = [f"part_{i}" for i in range(20)]
    orders = {tuple(recipe(seed=s).shard_order(names, e)) for s in range(3) for e in range(3)}
    assert len(orders) == 9
    first, next_epoch, other_seed = (
        recipe(seed=seed).rows_of(store.shard(0), epoch).ids(np.arange(4)).tolist()
        for seed, epoch in ((5, 0), (5, 1), (6, 0))
    )
    assert first != next_epoch
    assert first != other_seed


def test_rows_of_an_epoch_are_counted_over_the_shards_of_the_split(store):
    expected = 0
    for i in (0, 1):
        rows = recipe(seed=0).rows_of(store.shard(i), 0)
        assert rows.num_rows == pack("bestfit", store.shard(i).lengths, row_len=9, seed=0).num_rows
        expected += rows.num_rows
    assert epoch_rows(store, val_spec="last", seq_len=8) == expected
    # A line of all ids and BOS, cut every 8 targets.
    tokens = [store.shard(i).num_tokens + store.shard(i).num_documents for i in (0, 1)]
    assert epoch_rows(store, val_spec="last", seq_len=8, packing="stream") == sum(-(-(n - 1) // 8) for n in tokens)


def test_an_id_that_the_manifest_does_not_allow_is_an_error_that_names_the_shard(store):
    path = store.directory / "shard_00000.bin"
    data = np.fromfile(path, dtype="<u2")
    data[17] = 60_000
    data.tofile(path)
    rows = recipe().rows_of(store.shard(0), 0)
    with pytest.raises(DataError, match=r"part_0.jsonl\) holds id 60000"):
        rows.ids(np.arange(rows.num_rows))
