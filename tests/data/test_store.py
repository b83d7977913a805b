"""Reading a store: what is on disk, what is refused, and how missing shards are waited for."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import numpy as np
import pytest

from firstlight.data.build import build_store, start_build
from firstlight.data.store import FAILURE_FILE, TokenStore, WaitCancelled, id_dtype
from firstlight.errors import DataError


@pytest.fixture
def store(three_files, byte_tokenizer, tmp_path) -> TokenStore:
    return build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)


def texts_of(source, i: int) -> list[str]:
    return [json.loads(line)["text"] for line in source.shards[i].path.read_text(encoding="utf-8").splitlines()]


def test_every_document_comes_back_byte_for_byte(store, three_files):
    for i, shard in enumerate(store.shards()):
        texts = texts_of(three_files, i)
        assert shard.num_documents == len(texts)
        for doc, text in enumerate(texts):
            data = text.encode()
            assert bytes(shard.ids(doc).astype(np.uint8)) == data
            assert bytes(shard.ids(doc, 1, 3).astype(np.uint8)) == data[1:3]
            assert shard.lengths[doc] == shard.num_text_bytes[doc] == len(data)
            assert int(shard.doc_hashes[doc]) == int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
            assert shard.source_row(doc) == f"part_{i}.jsonl:{doc}"


def test_files_are_plain_little_endian_numbers(store, three_files):
    """Read here as the documentation says, without the code under test."""
    texts = [text.encode() for text in texts_of(three_files, 1)]
    ids = np.fromfile(store.directory / "shard_00001.bin", dtype="<u2")
    assert bytes(ids.astype(np.uint8)) == b"".join(texts)
    n = len(texts)
    numbers = np.fromfile(store.directory / "shard_00001.idx", dtype="<i8")
    assert len(numbers) == 4 * n + 1
    assert numbers[: n + 1].tolist() == [0, *np.cumsum([len(text) for text in texts]).tolist()]
    assert numbers[3 * n + 1 :].tolist() == list(range(n))


def test_ids_take_two_bytes_up_to_65536_ids_and_four_above():
    assert [id_dtype(v).itemsize for v in (300, 65_536, 65_537)] == [2, 2, 4]


def test_data_hash_is_that_of_names_and_file_bytes_in_order(store, three_files):
    expected = hashlib.sha256()
    for shard in three_files.shards:
        expected.update(f"{shard.name}\0{hashlib.sha256(shard.path.read_bytes()).hexdigest()}\n".encode())
    assert store.data_hash == expected.hexdigest()


def test_data_hash_does_not_wait_for_tokenisation(three_files, byte_tokenizer, tmp_path, store):
    for path in store.directory.glob("shard_*"):
        path.unlink()
    assert TokenStore.open(store.directory).data_hash == store.data_hash


def test_a_changed_byte_or_order_changes_the_data_hash(make_source, byte_tokenizer, tmp_path):
    def data_hash(files, folder):
        source = make_source(files, folder=folder)
        return build_store(source, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0).data_hash

    original = data_hash([["one"], ["two"]], "a")
    assert data_hash([["one"], ["two"]], "same") == original
    assert data_hash([["onf"], ["two"]], "byte") != original
    assert data_hash([["two"], ["one"]], "order") != original


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_file_cut_short_is_refused_by_name(store, suffix):
    path = store.directory / f"shard_00001.{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    fresh = TokenStore.open(store.directory)
    fresh.shard(0)
    with pytest.raises(DataError, match=rf"shard_00001.{suffix} has \d+ bytes"):
        fresh.shard(1)


def test_ids_beyond_the_vocabulary_are_refused_by_name(store):
    path = store.directory / "shard_00002.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"max_id": 5000}))
    with pytest.raises(DataError, match=r"part_2.jsonl.* id 5000.* 265 ids"):
        TokenStore.open(store.directory).shard(2)


def test_verify_finds_a_changed_byte(store):
    assert store.shard(0).verify() == []
    path = store.directory / "shard_00000.bin"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert len(TokenStore.open(store.directory).shard(0).verify()) == 1


def test_a_missing_shard_is_an_error_where_nobody_builds_it(store):
    (store.directory / "shard_00001.json").unlink()
    with pytest.raises(DataError, match=r"part_1.jsonl is not in the token store"):
        TokenStore.open(store.directory).shard(1)


def test_another_process_waits_for_a_shard_and_hears_of_failure(store):
    path = store.directory / "shard_00001.json"
    manifest = path.read_text()
    path.unlink()
    waiting = TokenStore.open(store.directory, wait=True)
    threading.Timer(0.2, path.write_text, [manifest]).start()
    assert waiting.shard(1).num_documents == 40
    (store.directory / "shard_00002.json").unlink()
    failure = json.dumps({"what": "part_2 is broken", "hint": "mend it"})
    threading.Timer(0.2, (store.directory / FAILURE_FILE).write_text, [failure]).start()
    with pytest.raises(DataError, match="part_2 is broken"):
        waiting.shard(2)


def test_a_wait_ends_when_it_is_called_off(store):
    (store.directory / "shard_00001.json").unlink()
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.perf_counter()
    with pytest.raises(WaitCancelled):
        TokenStore.open(store.directory, wait=True).shard(1, stop=stop)
    assert time.perf_counter() - start < 30


def test_shards_of_another_tokenizer_or_name_do_not_exist(store):
    path = store.directory / "shard_00000.json"
    manifest = json.loads(path.read_text())
    for change in ({"tokenizer_hash": "other"}, {"version": 0}, {"source": {"name": "else.jsonl"}}):
        path.write_text(json.dumps(manifest | change))
        assert not TokenStore.open(store.directory).is_built(0)


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no token store"):
        TokenStore.open(tmp_path)


def test_a_started_build_is_complete_when_its_last_shard_came(three_files, byte_tokenizer, tmp_path):
    with start_build(three_files, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0) as store:
        assert [shard.num_documents for shard in store.shards()] == [25, 40, 10]
        assert store.is_complete


def test_a_hash_cache_that_cannot_be_written_neither_fails_nor_blames_the_text(tmp_path, monkeypatch):
    import errno
    import hashlib
    import os

    from firstlight.data.store import SourceHashes

    file = tmp_path / "one.txt"
    file.write_bytes(b"some text")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert SourceHashes(tmp_path).sha256(file) == hashlib.sha256(b"some text").hexdigest()
