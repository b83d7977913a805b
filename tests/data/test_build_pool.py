"""Building in the background: the order, the failure that reaches who waits, workers that die."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from firstlight.data import build
from firstlight.data.build import build_store, start_build, store_directory
from firstlight.data.sources.directory import open_directory
from firstlight.data.store import FAILURE_FILE, TokenStore
from firstlight.errors import DataError


def test_start_build_returns_at_once_and_builds_what_is_wanted_first(
    three_files, byte_tokenizer, tmp_path, monkeypatch
):
    built = []

    def slow(path, *, name, **rest):
        time.sleep(0.2)
        built.append(name)
        return real(path, name=name, **rest)

    real = build.build_shard
    monkeypatch.setattr(build, "build_shard", slow)
    with start_build(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0, order=[1]) as store:
        assert not built, "start_build returns before the first shard is built"
        store.shard(2)
        assert built == ["part_1.jsonl", "part_2.jsonl"]
        store.shard(0)


def test_the_builders_failure_reaches_who_waits(three_files, byte_tokenizer, tmp_path):
    path = three_files.shards[1].path
    path.write_text('{"words": "no text field"}\n{broken\n')
    with pytest.raises(DataError, match=r"part_1.jsonl"):
        build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=1)
    directory = store_directory(three_files, byte_tokenizer, cache_dir=tmp_path / "c")
    assert "part_1.jsonl" in json.loads((directory / FAILURE_FILE).read_text())["what"]
    with pytest.raises(DataError, match=r"part_1.jsonl"):
        TokenStore.open(directory, wait=True).shard(1)
    path.write_text('{"text": "mended"}\n')
    assert build_store(open_directory(path.parent), byte_tokenizer, cache_dir=tmp_path / "c", num_workers=1).is_complete


def test_a_killed_worker_is_an_error_and_not_a_hang(make_source, tmp_path, byte_tokenizer):
    source = make_source([["x" * 100], ["some words " * 3_000_000]])
    store = start_build(source, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=1)
    store.shard(0)
    for worker in store._builder._workers:
        os.kill(worker.pid, signal.SIGKILL)
    # The worker may not have answered for part_0 yet, though its manifest is there.
    with pytest.raises(DataError, match=r"part_\d.jsonl ended by signal 9"):
        store.shard(1)
    store.close()


def test_progress_counts_shards(three_files, byte_tokenizer, tmp_path):
    seen = []
    build_store(
        three_files, byte_tokenizer, cache_dir=tmp_path, num_workers=0, progress=lambda *args: seen.append(args)
    )
    assert seen == [("tokenising", i, 3) for i in (1, 2, 3)]


def test_a_closed_store_ends_who_still_waits_and_leaves_no_failure_behind(make_source, byte_tokenizer, tmp_path):
    source = make_source([["some words " * 3_000_000]])
    store = start_build(source, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=1)
    start = time.perf_counter()
    store.close()
    assert time.perf_counter() - start < 20, "the build of 33 MB was waited for"
    with pytest.raises(DataError, match="was stopped before this shard"):
        store.shard(0)
    assert not (store.directory / FAILURE_FILE).exists()


def test_a_shard_that_nobody_was_asked_to_build_is_an_error_and_not_a_hang(three_files, byte_tokenizer, tmp_path):
    with start_build(three_files, byte_tokenizer, cache_dir=tmp_path, num_workers=0, shard_range="0/2") as store:
        store.shard(0)
        with pytest.raises(DataError, match="ended before this shard"):
            store.shard(1)
