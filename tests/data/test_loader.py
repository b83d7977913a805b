"""Batches: every id once per epoch, the same rows for any ranks and batch sizes, and exact resumption."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

from firstlight.data import build as build_module
from firstlight.data.batch import IGNORE, Batch, Position
from firstlight.data.build import build_store, start_build
from firstlight.data.loader import Loader
from firstlight.data.rows import PAD, epoch_rows
from firstlight.errors import ConfigError, DataError

BOS = 256
T = 8


@pytest.fixture
def build(make_source, byte_tokenizer, tmp_path):
    def build(files):
        return build_store(make_source(files), byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)

    return build


def texts(start: int, count: int) -> list[str]:
    return [f"{n} " + "abcdefghijklmnopqrstuvwxyz"[: n * 7 % 26] for n in range(start, start + count)]


@pytest.fixture
def store(build):
    return build([texts(0, 25), texts(100, 40), texts(200, 10), texts(300, 5)])


def test_padding_is_what_carries_no_loss():
    """The rows are made without torch, so they cannot import the name."""
    assert PAD == IGNORE


def make(store, **changes) -> Loader:
    settings = {
        "tokenizer_bos_id": BOS, "val_spec": "last", "seq_len": T, "device_batch_size": 2, "seed": 3, "prefetch": 0,
    }  # fmt: skip
    return Loader(store, **(settings | changes))


def row_tuples(batch: Batch) -> list[tuple[int, ...]]:
    """Each row's inputs and its last target: its L places, -1 where padded."""
    targets = batch.targets_BT.tolist()
    return [(inputs[0], *target) for inputs, target in zip(batch.inputs_BT.tolist(), targets, strict=True)]


def global_rows(store, *, world_size: int, count: int, **changes) -> list[tuple[int, ...]]:
    """The first ``count`` rows over all ranks, in the order of their global numbers."""
    loaders = [make(store, rank=rank, world_size=world_size, **changes) for rank in range(world_size)]
    rows: list[tuple[int, ...]] = []
    while len(rows) < count:
        by_rank = [row_tuples(next(loader)) for loader in loaders]
        rows += [row for dealt in zip(*by_rank, strict=True) for row in dealt]
    return rows[:count]


def byte_counts(files: list[list[str]]) -> Counter:
    """How often the texts of these files have each byte."""
    found: Counter = Counter()
    for text in itertools.chain(*files):
        found.update(text.encode())
    return found


@pytest.mark.parametrize("packing", ["bestfit", "stream"])
def test_one_epoch_has_each_id_of_each_document_as_target_exactly_once(store, packing):
    """Report R4: no document lost or repeated: every byte must be a target as often as the corpus has it."""
    loader = make(store, packing=packing, max_epochs=1)
    targets = Counter(int(t) for batch in loader for t in batch.targets_BT.flatten() if t not in (IGNORE, BOS))
    assert targets == byte_counts([texts(0, 25), texts(100, 40), texts(200, 10)])


def test_every_document_is_whole_in_an_epoch(build):
    """Rows are put together again into documents, which must be the corpus, each once."""
    files = [[f"<{n}:" + "x" * (n % 50) + ">" for n in range(100)], ["val"]]
    loader = make(build(files), max_epochs=1, seq_len=16)
    pieces = Counter()
    for row in itertools.chain.from_iterable(map(row_tuples, loader)):
        spelled = "".join("|" if i == BOS else "" if i < 0 else chr(i) for i in row)
        pieces.update(part for part in spelled.split("|") if part)
    whole = Counter(part for part in pieces.elements() if part.startswith("<") and part.endswith(">"))
    assert set(whole.values()) <= {1}
    cut = Counter(part for part in pieces.elements() if not (part.startswith("<") and part.endswith(">")))
    heads = [part for part in cut.elements() if part.startswith("<")]
    assert len(whole) + len(heads) == 100
    assert sum(map(len, pieces.elements())) == sum(map(len, files[0]))


def test_bestfit_rows_begin_with_bos_and_targets_are_the_inputs_shifted(store):
    for batch in itertools.islice(make(store), 60):
        assert (batch.inputs_BT[:, 0] == BOS).all()
        inside = batch.targets_BT[:, :-1]
        assert ((inside == batch.inputs_BT[:, 1:]) | (inside == IGNORE)).all()


@pytest.mark.parametrize("packing", ["bestfit", "stream"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_line_of_rows_is_the_same_for_any_ranks_and_batch_sizes(store, packing, world_size, rows):
    count = 2 * epoch_rows(store, val_spec="last", seq_len=T, packing=packing, seed=3) + 7
    expected = global_rows(store, world_size=1, count=count, device_batch_size=1, packing=packing)
    assert global_rows(store, world_size=world_size, count=count, device_batch_size=rows, packing=packing) == expected


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_prefetching_changes_nothing(store, prefetch):
    expected = list(map(row_tuples, itertools.islice(make(store), 80)))
    with make(store, prefetch=prefetch) as loader:
        assert list(map(row_tuples, itertools.islice(loader, 80))) == expected


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.inputs_BT, b.inputs_BT) and torch.equal(a.targets_BT, b.targets_BT) and a.position == b.position
    )


@pytest.mark.parametrize("packing", ["bestfit", "stream"])
def test_resuming_after_any_of_many_batches_goes_on_bit_equal(store, packing):
    """Reports 4, 5, 6, 7, R3: the next 8 batches, from anywhere in the first two epochs, and with prefetch running ahead."""
    rows = epoch_rows(store, val_spec="last", seq_len=T, packing=packing, seed=3)
    straight = list(itertools.islice(make(store, packing=packing), rows + 8))  # two rows a batch: two epochs
    assert straight[-9].position.epoch >= 1
    for i in range(0, len(straight) - 8, max(1, (len(straight) - 8) // 50)):
        position = Position(**straight[i].position.to_dict())
        with make(store, packing=packing, position=position, prefetch=i % 3) as resumed:
            assert all(same(next(resumed), straight[i + 1 + k]) for k in range(8))


def test_resuming_on_other_ranks_goes_on_with_the_next_row(store):
    """Report R4: stop on 2 ranks, go on with 3 and then 1; the line of rows has no gap and no repetition."""
    expected = global_rows(store, world_size=1, count=60, device_batch_size=1)
    rows: list[tuple[int, ...]] = []
    position = Position()
    for world_size, batches, size in ((2, 3, 2), (3, 4, 3), (1, 12, 1)):
        loaders = [
            make(store, rank=r, world_size=world_size, device_batch_size=size, position=position)
            for r in range(world_size)
        ]
        for _ in range(batches):
            dealt = [next(loader) for loader in loaders]
            rows += [row for each in zip(*map(row_tuples, dealt), strict=True) for row in each]
            position = dealt[0].position
            assert all(batch.position == position for batch in dealt)
        assert position.rows_consumed == len(rows)
    assert rows == expected


def test_later_epochs_cover_everything_again_in_another_order(store):
    """Reports 1 and 4: training goes on after the first pass, and a resumed run's next epoch is a whole one."""
    straight = make(store, device_batch_size=1)
    epochs: list[list[tuple[int, ...]]] = [[], [], []]
    position = Position()
    while position.epoch < 3:
        batch = next(straight)
        epochs[position.epoch] += row_tuples(batch)
        position = batch.position
    counts = [Counter(i for row in rows for i in row[1:] if i not in (IGNORE, BOS)) for rows in epochs]
    assert counts[0] == counts[1] == counts[2] == byte_counts([texts(0, 25), texts(100, 40), texts(200, 10)])
    assert epochs[0] != epochs[1] != epochs[2]


def test_seeds_give_different_orders_and_the_same_ids(store):
    one, two = (list(make(store, seed=seed, device_batch_size=1, max_epochs=1)) for seed in (1, 2))
    assert list(map(row_tuples, one)) != list(map(row_tuples, two))


def test_the_position_counts_rows_and_points_to_the_next_shard_when_one_is_used_up(store):
    rows = epoch_rows(store, val_spec="last", seq_len=T, seed=3)
    loader = make(store, device_batch_size=rows)
    assert next(loader).position == Position(epoch=1, shard_index=0, row=0, rows_consumed=rows)


def test_one_file_without_a_hash_split_is_refused_and_with_it_works(build):
    """Report 2: one file only hung for ever."""
    store = build([texts(0, 60)])
    with pytest.raises(DataError, match="nothing would be left to train on"):
        make(store)
    assert next(make(store, val_spec="hash:0.2")).inputs_BT.shape == (2, T)


def test_fewer_rows_than_ranks_is_no_hang(build):
    """Report 3: a rank whose share was empty never gave a batch. One row, four ranks: the epochs go by faster."""
    store = build([["abc"], ["val"]])
    for rank in range(4):
        batch = next(make(store, rank=rank, world_size=4))
        assert batch.position == Position(epoch=8, rows_consumed=8)
        assert row_tuples(batch) == [(BOS, 97, 98, 99, -1, -1, -1, -1, -1)] * 2


def test_a_shard_without_documents_is_passed_over(build):
    """Report 3: a file of no rows hung for ever."""
    store = build([[], texts(0, 5), [], ["val"]])
    loader = make(store, max_epochs=2, device_batch_size=3)
    targets = Counter(int(t) for batch in loader for t in batch.targets_BT.flatten() if t not in (IGNORE, BOS))
    assert targets == Counter({i: 2 * n for i, n in byte_counts([texts(0, 5)]).items()})


@pytest.mark.parametrize("prefetch", [0, 2])
def test_no_training_document_at_all_is_an_error(build, prefetch):
    loader = make(build([[], [], ["val"]]), prefetch=prefetch)
    with pytest.raises(DataError, match="no training document"):
        next(loader)


@pytest.mark.parametrize("length", [1, T - 1, T])
def test_a_text_shorter_than_a_row_is_padded_without_loss(build, length):
    """Report 9: text of T - 1 tokens; zero is a token, so padding is BOS without a target."""
    text = "abcdefghijklmnop"[:length]
    batch = next(make(build([[text], ["val"]]), device_batch_size=1))
    assert batch.num_targets() == length
    assert batch.targets_BT[0, :length].tolist() == list(text.encode())
    assert (batch.inputs_BT[0, length + 1 :] == BOS).all()


def test_ids_beyond_the_models_vocabulary_are_refused_before_the_first_batch(store):
    """Report 10: a vocabulary of 65 and an id of 70 ended in a device-side assert."""
    with pytest.raises(DataError, match=r"part_0.jsonl holds id \d+, but the model has 65 ids"):
        make(store, vocab_size=65, tokenizer_bos_id=64)
    with pytest.raises(DataError, match=r"tokenised with 265 ids, but the model has 257"):
        make(store, vocab_size=257)


def test_a_damaged_file_of_ids_is_named_before_it_reaches_the_model(store):
    """Report 10, after the build: a byte of the .bin file is changed so that its id is not in the vocabulary."""
    for path in store.directory.glob("*.bin"):
        data = np.fromfile(path, dtype="<u2")
        data[:] = 4000
        data.tofile(path)
    with make(store, prefetch=2) as loader, pytest.raises(DataError, match=r"part_\d.jsonl\) holds id 4000"):
        next(loader)


def test_batches_are_contiguous_int64(store):
    """Report 14: slices of a buffer are not contiguous, and .view failed on them."""
    batch = next(make(store))
    for tensor in (batch.inputs_BT, batch.targets_BT):
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.int64
        assert tensor.view(-1).shape == (2 * T,)


def test_pinning_follows_the_devices_type_not_its_spelling(store, monkeypatch):
    """Report 16: torch.device("cuda") == "cuda" was False, so memory was never pinned."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pin") or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, non_blocking: calls.append((str(device), non_blocking)) or tensor
    )
    for device in (torch.device("cuda"), "cuda:0", torch.device("cuda", 1)):
        calls.clear()
        next(make(store, device=device))
        assert calls == ["pin", "pin", *[(str(torch.device(device)), True)] * 2]
    calls.clear()
    next(make(store, device=torch.device("mps")))
    assert calls == [("mps", False)] * 2
    calls.clear()
    next(make(store, device="cpu"))
    assert calls == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_batches_on_the_gpu_are_those_of_the_cpu(store):
    with make(store, device=torch.device("cuda"), prefetch=2) as loader:
        for batch, expected in zip(itertools.islice(loader, 40), make(store), strict=False):
            assert batch.inputs_BT.device.type == "cuda"
            assert torch.equal(batch.inputs_BT.cpu(), expected.inputs_BT)
            assert torch.equal(batch.targets_BT.cpu(), expected.targets_BT)


def test_max_epochs_ends_with_a_padded_batch_for_every_rank(store):
    rows = epoch_rows(store, val_spec="last", seq_len=T, seed=3)
    world_size = 4
    sizes = []
    for rank in range(world_size):
        batches = list(make(store, rank=rank, world_size=world_size, max_epochs=1, device_batch_size=3))
        sizes.append(len(batches))
        assert batches[-1].position == Position(epoch=1, rows_consumed=rows)
        assert {tuple(batch.inputs_BT.shape) for batch in batches} == {(3, T)}
    assert sizes == [-(-rows // 12)] * world_size


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_that_has_ended_or_failed_stays_so(store, prefetch):
    loader = make(store, max_epochs=1, prefetch=prefetch)
    assert len(list(loader)) > 0
    assert list(loader) == []
    for path in store.directory.glob("*.json"):
        path.unlink()
    failed = make(type(store)(store.directory, store.manifest, builder=None, wait=False), prefetch=prefetch)
    for _ in range(2):
        with pytest.raises(DataError, match="not in the token store"):
            next(failed)
    failed.close()


def test_close_is_quick_whatever_the_thread_is_doing(store, three_files):
    def threads() -> int:
        return sum(thread.name == "firstlight-loader" for thread in threading.enumerate())

    full = make(store, prefetch=2)
    waiting = make(type(store).open(store.directory, wait=True), prefetch=2)
    (store.directory / "shard_00001.json").unlink()
    time.sleep(0.1)
    start = time.perf_counter()
    for loader in (full, waiting):
        loader.close()
        loader.close()
        assert list(loader) == []
    assert time.perf_counter() - start < 30
    assert threads() == 0


def test_documents_of_names_what_was_trained_on(build):
    """Documents of T ids fill a row each, so each row spells the one document that must be named."""
    files = [[f"{k}-{n:02d}-abcd"[:T] for n in range(30)] for k in range(3)]
    loader = make(build(files), device_batch_size=4)
    before = Position()
    for _ in range(40):
        batch = next(loader)
        expected = ["".join(map(chr, row)) for row in batch.targets_BT.tolist()]
        names = [name.removeprefix("part_").split(".jsonl:") for name in loader.documents_of(before, 4)]
        assert [files[int(file)][int(row)] for file, row in names] == expected
        before = batch.position


def test_documents_of_names_both_halves_of_a_row_and_no_lone_bos(build):
    # Rows of 9 places: sizes 4 + 4 leave one place, which takes the BOS of the third.
    loader = make(build([["abc", "def", "ghi"], ["val"]]), device_batch_size=1)
    next(loader)
    row_names = [loader.documents_of(Position(row=row), 1) for row in range(2)]
    assert sorted(map(len, row_names)) == [1, 2]
    assert sorted([*row_names[0], *row_names[1]]) == [f"part_0.jsonl:{row}" for row in range(3)]


def test_training_begins_before_all_shards_are_built(three_files, byte_tokenizer, tmp_path, monkeypatch):
    gate = threading.Event()
    real = build_module.build_shard

    def gated(path, *, index, **rest):
        if index == 1:
            gate.wait()
        return real(path, index=index, **rest)

    monkeypatch.setattr(build_module, "build_shard", gated)
    with start_build(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0, order=[0]) as store:
        seed = next(s for s in range(20) if make(store, seed=s)._recipe.shard_order(store.shard_names, 0)[0] == 0)
        with make(store, seed=seed, prefetch=2) as loader:
            next(loader)
            assert not store.is_built(1)
            gate.set()
            assert sum(1 for _ in itertools.islice(loader, 100)) == 100


def test_a_position_outside_the_data_is_refused(store):
    for position in (Position(shard_index=3), Position(row=10_000)):
        with pytest.raises(DataError, match="is not in this data"):
            next(make(store, position=position))


@pytest.mark.parametrize(("changes", "word"), [({"seq_len": 0}, "--max-seq-len"), ({"device_batch_size": 0}, "--device-batch-size"), ({"packing": "tight"}, "bestfit")])  # fmt: skip
def test_impossible_settings_are_refused(store, changes, word):
    with pytest.raises(ConfigError) as caught:
        make(store, **changes)
    assert word in str(caught.value)


def test_validation_rows_come_from_the_other_side(store):
    loader = make(store, split="val", max_epochs=1)
    targets = Counter(int(t) for batch in loader for t in batch.targets_BT.flatten() if t not in (IGNORE, BOS))
    assert targets == byte_counts([texts(300, 5)])
