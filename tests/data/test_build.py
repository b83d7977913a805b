"""Building a store: kills at every stage, changed sources, workers that die, full disks."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstlight.data import build
from firstlight.data.build import build_store, encoder_notes, parse_shard_range, prepare_store, store_directory
from firstlight.data.sources.base import Source, SourceShard
from firstlight.data.sources.directory import open_directory
from firstlight.data.store import TokenStore
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.bpe import Tokenizer


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("shard_*") if path.suffix != ".tmp"}


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from firstlight.data.build import build_store
from firstlight.data.sources.directory import open_directory
from firstlight.tokens.bpe import Tokenizer

corpus, cache, kill_at, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "after"
calls = 0

def counted(real):
    def call(*args):
        global calls
        # The first calls make the store's own files; the shards' begin with the .bin file's fsync.
        shard = not args or not isinstance(args[0], (str, Path)) or "shard_" in str(args[0])
        calls += shard
        if calls == kill_at and shard and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args)
        if calls == kill_at and shard and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

tokenizer = Tokenizer([bytes([b]) for b in range(256)])
source = open_directory(corpus)
from firstlight.data.build import prepare_store
prepare_store(source, tokenizer, cache_dir=cache)
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
build_store(source, tokenizer, cache_dir=cache, num_workers=0)
"""


@pytest.mark.parametrize("after", ["before", "after"])
def test_a_kill_at_any_stage_leaves_nothing_that_is_trusted(three_files, byte_tokenizer, tmp_path, after):
    """SIGKILL before and after each sync and rename of the first shards; the second run must equal a clean one."""
    clean = build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "clean", num_workers=0)
    expected = contents(clean.directory)
    stages = (
        9  # sync .bin and .idx, rename both, sync the folder, sync the manifest, rename it, sync; then the next shard
    )
    corpus = str(three_files.shards[0].path.parent)
    running = {
        kill_at: subprocess.Popen(
            [sys.executable, "-c", KILLED_BUILD, corpus, str(tmp_path / f"cache_{kill_at}"), str(kill_at), after]
        )
        for kill_at in range(1, stages + 1)
    }
    seen_unfinished = 0
    for kill_at, process in running.items():
        assert process.wait() == -signal.SIGKILL
        cache = tmp_path / f"cache_{kill_at}"
        left = TokenStore.open(store_directory(three_files, byte_tokenizer, cache_dir=cache))
        for index in range(3):
            if left.is_built(index):
                assert left.shard(index).verify() == []
            else:
                seen_unfinished += 1
        again = build_store(three_files, byte_tokenizer, cache_dir=cache, num_workers=0)
        assert contents(again.directory) == expected
    assert seen_unfinished >= 2 * stages


def test_a_second_run_builds_nothing(three_files, byte_tokenizer, tmp_path, monkeypatch):
    build_store(three_files, byte_tokenizer, cache_dir=tmp_path, num_workers=0)
    monkeypatch.setattr(build, "build_shard", lambda *a, **k: pytest.fail("built again"))
    assert build_store(three_files, byte_tokenizer, cache_dir=tmp_path, num_workers=0).is_complete


def test_workers_build_the_same_store_as_this_process(three_files, byte_tokenizer, tmp_path):
    here = build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "here", num_workers=0)
    there = build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "there", num_workers=2)
    assert contents(here.directory) == contents(there.directory)


def test_parts_built_by_a_scheduler_make_the_same_store(three_files, byte_tokenizer, tmp_path):
    whole = build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "whole", num_workers=0)
    for part, built in (("1/2", [False, True, False]), ("0/2", [True, True, True])):
        store = build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "parts", num_workers=0, shard_range=part)
        assert [store.is_built(i) for i in range(3)] == built
    assert contents(store.directory) == contents(whole.directory)


def test_shard_ranges_cover_each_shard_once():
    parts = [parse_shard_range(f"{i}/4", 10) for i in range(4)]
    assert sorted(itertools.chain.from_iterable(parts)) == list(range(10))
    for wrong in ("4/4", "1", "x/2", "-1/2", "0/0"):
        with pytest.raises(ConfigError, match="not a part of the build"):
            parse_shard_range(wrong, 10)


def test_a_changed_source_file_is_built_again_and_only_that(three_files, byte_tokenizer, tmp_path):
    before = contents(build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0).directory)
    path = three_files.shards[1].path
    facts = path.stat()
    path.write_bytes(path.read_bytes().replace(b"100", b"999", 1))
    assert path.stat().st_size == facts.st_size
    source = open_directory(path.parent)
    store = build_store(source, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    after = contents(store.directory)
    assert {name for name in after if after[name] != before[name]} == {
        f"shard_00001.{s}" for s in ("bin", "idx", "json")
    }


def test_a_touched_file_with_the_same_bytes_is_not_built_again(three_files, byte_tokenizer, tmp_path, monkeypatch):
    build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    os.utime(three_files.shards[1].path, (1, 1))
    monkeypatch.setattr(build, "build_shard", lambda *a, **k: pytest.fail("built again"))
    build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)


def test_another_tokenizer_gets_another_store(three_files, byte_tokenizer, tmp_path):
    other = Tokenizer([bytes([b]) for b in range(256)] + [b"ab"])
    stores = {build_store(three_files, t, cache_dir=tmp_path, num_workers=0).directory for t in (byte_tokenizer, other)}
    assert len(stores) == 2


def test_skipped_rows_are_counted_and_named(tmp_path, byte_tokenizer):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.table({"text": ["one", None, "", "four"]}), corpus / "a.parquet")
    shard = build_store(open_directory(corpus), byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0).shard(0)
    assert [shard.source_row(doc) for doc in range(shard.num_documents)] == ["a.parquet:0", "a.parquet:3"]
    counts = shard.manifest["counts"]
    assert (counts["documents"], counts["skipped_null"], counts["skipped_empty"]) == (2, 1, 1)
    assert [example.split()[0] for example in counts["examples"]] == ["a.parquet:1", "a.parquet:2"]


def test_a_document_without_ids_is_skipped_with_a_count(make_source, tmp_path, byte_tokenizer):
    class Deaf(Tokenizer):
        def encode_batch(self, texts, num_threads=1):
            return [ids[:0] if texts[i] == "gone" else ids for i, ids in enumerate(super().encode_batch(texts))]

    tokenizer = Deaf([bytes([b]) for b in range(256)])
    shard = build_store(make_source([["here", "gone"]]), tokenizer, cache_dir=tmp_path / "c", num_workers=0).shard(0)
    assert shard.num_documents == shard.manifest["counts"]["documents"] == 1
    assert shard.manifest["counts"]["skipped_empty"] == 1


def test_a_file_without_documents_gives_a_shard_without_documents(make_source, tmp_path, byte_tokenizer):
    store = build_store(make_source([["text"], []]), byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    assert (store.shard(1).num_documents, store.shard(1).num_tokens, len(store.shard(1).lengths)) == (0, 0, 0)


def test_a_line_of_ten_megabytes_works(make_source, tmp_path, byte_tokenizer):
    source = make_source([["a short one", "many words " * 950_000]])
    shard = build_store(source, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0).shard(0)
    assert shard.num_text_bytes.tolist() == [11, 11 * 950_000]


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "FIRSTLIGHT_CACHE")])
def test_a_full_or_forbidden_disk_is_one_clear_message(
    three_files, byte_tokenizer, tmp_path, monkeypatch, number, word
):
    prepare_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c")
    real = os.replace

    def refuse(source, target):
        if str(target).endswith(".idx"):
            raise OSError(number, os.strerror(number), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match="cannot write the token store") as caught:
        build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    assert word in caught.value.hint
    directory = store_directory(three_files, byte_tokenizer, cache_dir=tmp_path / "c")
    assert not list(directory.glob("shard_*.tmp"))
    assert not TokenStore.open(directory).is_built(0)


def test_a_file_in_the_caches_place_is_one_clear_message(three_files, byte_tokenizer, tmp_path):
    (tmp_path / "c").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write the token store"):
        build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)


def test_abandoned_temporary_files_are_removed_and_fresh_ones_kept(three_files, byte_tokenizer, tmp_path):
    directory = prepare_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c")
    old, fresh = directory / "shard_00000.bin.1-1-1.tmp", directory / "shard_00000.bin.2-2-2.tmp"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_remote_shards_are_fetched_only_when_they_are_built(three_files, byte_tokenizer, tmp_path):
    fetched = []

    def remote(shard: SourceShard) -> SourceShard:
        def fetch(progress):
            fetched.append(shard.name)
            return shard.path

        return SourceShard(shard.name, None, None, fetch)

    source = Source("hub/data", tuple(map(remote, three_files.shards)), val_shard="part_1.jsonl")
    store = build_store(source, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    assert sorted(fetched) == ["part_0.jsonl", "part_1.jsonl", "part_2.jsonl"]
    assert store.pinned_val_shard == "part_1.jsonl"
    build_store(source, byte_tokenizer, cache_dir=tmp_path / "c", num_workers=0)
    assert len(fetched) == 3


def test_the_store_is_the_same_with_each_encoder_and_says_which_was_used(make_source, tmp_path, monkeypatch):
    tokens = [*(bytes([b]) for b in range(256)), b"12", b"the", b" t", b" the"]
    texts = [f"the year {year} in the year 12{year}, 10² " + "the 9 " * 2000 for year in range(1, 100)]
    source = make_source([texts, ["the first", "the second 1234"]])
    with_fast = build_store(source, Tokenizer(tokens), cache_dir=tmp_path / "fast", num_workers=0)
    in_process = build_store(source, Tokenizer(tokens), cache_dir=tmp_path / "worker", num_workers=1)
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    without = build_store(source, Tokenizer(tokens), cache_dir=tmp_path / "plain", num_workers=0)
    assert with_fast.directory.name == without.directory.name
    stored = [
        {name: data for name, data in contents(store.directory).items() if not name.endswith(".json")}
        for store in (with_fast, in_process, without)
    ]
    assert stored[0] == stored[1] == stored[2]
    assert len(stored[0]) == 4
    # All texts of the first shard have 10², which only tiktoken takes; those of the second do not.
    assert with_fast.shard_manifest(0)["encoded_by"] == {"tiktoken": 99}
    assert with_fast.shard_manifest(1)["encoded_by"] == {"fast": 2}
    first, counts = encoder_notes(with_fast)
    assert "gigatoken 0.10" in first
    assert counts == "documents encoded: 2 by the fast encoder, 99 by tiktoken"
    assert [note.split(" (")[0] for note in encoder_notes(without)] == ["tiktoken encodes: no gigatoken"]
