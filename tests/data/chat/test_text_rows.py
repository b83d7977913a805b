"""The text of a base run as a component: the rows that the base loader's own reader walks, found by number."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from firstlight.data.build import build_store
from firstlight.data.chat.text_rows import TextRows
from firstlight.data.loader import Loader
from firstlight.data.rows import RowRecipe
from firstlight.data.split import resolve_for
from firstlight.data.store import TokenStore, WaitCancelled
from firstlight.errors import DataError

BOS = 256
T = 8


@pytest.fixture
def store(three_files, byte_tokenizer, tmp_path) -> TokenStore:
    return build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)


def text_rows(store: TokenStore, **changes) -> TextRows:
    return TextRows(store, **({"val_spec": "last", "seq_len": T, "bos_id": BOS} | changes))


def base_rows(store: TokenStore, count: int, **changes) -> list[list[int]]:
    """Rows as the base loader gives them: inputs and the last target."""
    settings = {"tokenizer_bos_id": BOS, "val_spec": "last", "seq_len": T, "device_batch_size": 1, "prefetch": 0}
    loader = Loader(store, **(settings | changes))
    rows = []
    for _ in range(count):
        batch = next(loader)
        rows.append([*batch.inputs_BT[0].tolist(), batch.targets_BT[0, -1].item()])
    return rows


@pytest.mark.parametrize("packing", ["bestfit", "stream"])
@pytest.mark.parametrize("val", ["last", "hash:0.3"])
def test_the_rows_are_those_of_the_base_loader(store, packing, val) -> None:
    walker = text_rows(store, packing=packing, val_spec=val).walker(seed=9)
    count = 2 * 175  # past the end of an epoch
    expected = base_rows(store, count, seed=9, packing=packing, val_spec=val)
    for n in [*range(60), *range(count - 60, count)]:
        rows, index = walker.at(n)
        (ids,) = rows.ids(np.array([index])).tolist()
        # The base loader shows padding in the inputs as BOS.
        assert [BOS if i == -1 and place < T else i for place, i in enumerate(ids)] == expected[n]
        assert rows.targets(np.array([index])).tolist() == [ids]
        assert rows.documents(np.array([index]))[0].startswith("part_")


def test_at_random_it_is_as_in_order(store) -> None:
    in_order = text_rows(store).walker(seed=1)
    line = []
    for n in range(300):
        rows, index = in_order.at(n)
        line.append(rows.ids(np.array([index])).tolist())
    order = np.random.default_rng(0).permutation(300)[:60].tolist()
    walker = text_rows(store).walker(seed=1)
    for n in order:
        rows, index = walker.at(n)
        assert rows.ids(np.array([index])).tolist() == line[n]


def test_shards_are_opened_only_when_their_rows_come(store, monkeypatch) -> None:
    opened = []
    real = store.shard

    def shard(index: int, **arguments):
        opened.append(index)
        return real(index, **arguments)

    monkeypatch.setattr(store, "shard", shard)
    walker = text_rows(store).walker(seed=1)
    assert opened == []
    walker.at(0)
    assert len(opened) == 1
    recipe = RowRecipe(resolve_for(store, "last"), "train", "bestfit", T + 1, 1, BOS)
    assert opened == recipe.shard_order(store.shard_names, 0)[:1]


def test_a_wait_for_a_shard_can_be_called_off(three_files, byte_tokenizer, tmp_path) -> None:
    from firstlight.data.build import prepare_store

    directory = prepare_store(three_files, byte_tokenizer, cache_dir=tmp_path / "empty")
    stop = threading.Event()
    walker = text_rows(TokenStore.open(directory, wait=True)).walker(seed=1, stop=stop)
    stop.set()
    with pytest.raises(WaitCancelled):
        walker.at(0)


def test_a_split_without_rows_is_an_error(make_source, byte_tokenizer, tmp_path) -> None:
    source = make_source([["only one short text"], ["and another"]])
    store = build_store(source, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)
    walker = text_rows(store, val_spec="hash:1e-12", split="val").walker(seed=0)
    with pytest.raises(DataError, match="there is no validation document"):
        walker.at(0)
