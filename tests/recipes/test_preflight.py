"""What is refused or said before step 0: disk, folders, versions, settings, rows; all mistakes at once, on every rank."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from firstlight.errors import ConfigError, DataError, Problems
from firstlight.recipes import preflight
from firstlight.recipes.preflight import (
    add_disk_problems,
    check_disk,
    check_machines,
    check_text,
    differing,
    disk_bytes,
    disk_room,
    identity,
    training_rows,
)
from firstlight.recipes.prepare import prepare_data
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.plan import Horizon, make_plan

CPU = Runtime(device=torch.device("cpu"))
GIB = 2**30


def plan_of(*, rows=8, world_size=1, steps=100, seq_len=32):
    return make_plan(
        1, vocab_size=320, seq_len=seq_len, total_batch_size=seq_len * rows, horizon=Horizon("steps", steps),
        world_size=world_size,
    )  # fmt: skip


# Disk.


def disk_mistake(plan, *, keep: int, room: int) -> str:
    problems = Problems()
    add_disk_problems(problems, plan, keep=keep, world_size=1, room_bytes=room, run_dir=Path("runs/mine"))
    try:
        problems.raise_if_any()
    except ConfigError as error:
        return str(error)
    return ""


def test_the_disk_holds_what_is_kept_the_best_one_being_written_and_metrics():
    plan = replace(plan_of(steps=1000), checkpoint_bytes=10**9)
    # 2 kept, the best, one being written; 540 bytes of metrics a step.
    assert disk_bytes(plan, keep=2) == 4 * 10**9 + 1000 * 540
    assert disk_mistake(plan, keep=2, room=4 * 10**9 + 540_000) == ""
    assert "room for" in disk_mistake(plan, keep=2, room=4 * 10**9 + 539_999)


def test_more_checkpoints_than_fit_are_refused_with_the_number_that_does():
    plan = replace(plan_of(steps=1), checkpoint_bytes=GIB)
    said = disk_mistake(plan, keep=50, room=8 * GIB)
    # One gigabyte short of eight for the metrics' bytes: seven whole ones are 5 kept, the best and one being written.
    assert "checkpoints need 52.0 GiB (50 kept, the best, and one being written, each 1.0 GiB)" in said
    assert "room for 8.0 GiB in runs/mine" in said
    assert "use --keep 5," in said
    assert "FIRSTLIGHT_RUNS" in said
    assert disk_mistake(plan, keep=5, room=8 * GIB) == ""
    assert "smaller --depth" in disk_mistake(plan, keep=2, room=2 * GIB)


def test_keeping_none_is_refused():
    assert "--keep 0 would keep no checkpoint" in disk_mistake(plan_of(), keep=0, room=GIB)


def test_a_resumed_run_may_take_the_room_of_its_own_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 70, 30))
    run_dir = tmp_path / "runs" / "mine"
    assert disk_room(run_dir) == 30
    assert not run_dir.exists()
    saved = run_dir / "checkpoints" / "step_00000010"
    saved.mkdir(parents=True)
    (saved / "model.safetensors").write_bytes(b"x" * 12)
    (run_dir / "metrics.jsonl").write_bytes(b"y" * 5)
    assert disk_room(run_dir) == 42


def test_the_line_of_a_plan_says_what_is_needed_and_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "disk_room", lambda run_dir: 3 * GIB)
    line = check_disk(replace(plan_of(steps=1), checkpoint_bytes=GIB // 2), keep=2, world_size=1, run_dir=tmp_path)
    assert (line.name, line.value) == ("disk", "2.0 GiB")
    assert "room for 3.0 GiB" in line.reason
    with pytest.raises(ConfigError, match=r"checkpoints need 4\.0 GiB"):
        check_disk(replace(plan_of(steps=1), checkpoint_bytes=GIB), keep=2, world_size=1, run_dir=tmp_path)


# Machines.


def test_equal_ranks_are_no_mistake_and_a_different_one_is_named():
    same = json.dumps({"torch": "2.13.0", "--seed": "1"})
    other = json.dumps({"torch": "2.12.1", "--seed": "1"})
    assert differing([same, same, same]) == []
    [(what, hint)] = differing([same, same, other])
    assert what == "torch is 2.12.1 on rank 2 and 2.13.0 on rank 0"
    assert "same versions" in hint
    [(what, hint)] = differing([same, json.dumps({"torch": "2.13.0", "--seed": "2"})])
    assert what == "--seed is 2 on rank 1 and 1 on rank 0"
    assert hint == "start all processes with the same command line"


def test_what_only_serves_a_machine_may_differ_and_what_decides_numbers_may_not():
    plan, settings = plan_of(), BaseSettings(depth=1)
    first = json.dumps(identity(plan, settings))
    assert differing([first, json.dumps(identity(plan, replace(settings, threads=3, workers=1, data="/b")))]) == []
    for change in ({"matrix_lr": 0.5}, {"seed": 2}, {"save_every": 7}, {"resume": True}):
        assert len(differing([first, json.dumps(identity(plan, replace(settings, **change)))])) == 1, change
    [(what, _)] = differing([first, json.dumps(identity(replace(plan, eval_every=33), settings))])
    assert what == "the plan's eval_every is 33 on rank 1 and 20 on rank 0"


def machines(runtime, runs: list[Path], caches: list[Path], seeds: list[int], keep: int, room: int):
    preflight.disk_room = lambda run_dir: room
    settings = BaseSettings(depth=1, seed=seeds[runtime.rank], keep=keep)
    run_dir, cache_dir = runs[runtime.rank] / "mine", caches[runtime.rank]
    plan = plan_of(world_size=runtime.world_size)
    try:
        return check_machines(plan, settings, runtime, run_dir=run_dir, cache_dir=cache_dir)
    except ConfigError as error:
        return str(error)


def test_equal_machines_pass_without_a_word_and_leave_nothing_behind(tmp_path):
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    assert run_ranks(machines, 2, [runs] * 2, [cache] * 2, [1, 1], 2, GIB) == [[], []]
    assert list(runs.iterdir()) + list(cache.iterdir()) == []


def test_all_mistakes_of_the_machines_come_at_once_on_every_rank(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    said = run_ranks(machines, 2, runs, [tmp_path / "cache"] * 2, [1, 2], 10**6, GIB)
    assert said[0] == said[1]
    for part in (
        "3 things are wrong",
        "checkpoints need",
        "--seed is 2 on rank 1 and 1 on rank 0",
        f"the runs' folder is not shared by all nodes: rank 1 cannot see what rank 0 writes in {tmp_path / 'a'}",
        "set FIRSTLIGHT_RUNS to a folder on a shared disk",
    ):
        assert part in said[0]


def test_caches_of_their_own_are_said_and_a_cache_that_cannot_be_written_is_refused(tmp_path):
    caches = [tmp_path / "a", tmp_path / "b"]
    for notes in run_ranks(machines, 2, [tmp_path / "runs"] * 2, caches, [1, 1], 2, GIB):
        assert len(notes) == 1
        assert "each of 2 is filled by its own machine" in notes[0]
    (tmp_path / "file").write_text("")
    caches = [tmp_path / "a", tmp_path / "file" / "b"]
    for said in run_ranks(machines, 2, [tmp_path / "runs"] * 2, caches, [1, 1], 2, GIB):
        assert "the cache folder: rank 1: " in said
        assert "FIRSTLIGHT_CACHE" in said


def test_one_process_is_asked_for_its_disk_only(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "disk_room", lambda run_dir: 1000)
    folders = {"run_dir": tmp_path / "runs" / "mine", "cache_dir": tmp_path / "cache"}
    with pytest.raises(ConfigError, match="room for 1000 B"):
        check_machines(plan_of(), BaseSettings(), CPU, **folders)
    monkeypatch.setattr(preflight, "disk_room", lambda run_dir: GIB)
    assert check_machines(plan_of(), BaseSettings(), CPU, **folders) == []
    assert not (tmp_path / "cache").exists()


# Text.


def text_of(folder: Path, texts: list[list[str]], cache: Path, *, val: str = "last", seq_len: int = 32):
    """Prepared data of the given documents, one list a shard, a token a byte."""
    folder.mkdir(exist_ok=True)
    for i, documents in enumerate(texts):
        (folder / f"{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokenizer = cache / "bytes.json"
    cache.mkdir(exist_ok=True)
    Tokenizer([bytes([b]) for b in range(256)]).save(tokenizer)
    return prepare_data(
        str(folder), val=val, tokenizer_path=tokenizer, vocab_size=265, cache_dir=cache, num_workers=0, seed=1,
        packing="bestfit", seq_len=seq_len, console=Console(),
    )  # fmt: skip


def notes_of(plan, data, runtime=CPU):
    with data.store:
        return check_text(plan, data, runtime, packing="bestfit", seed=1)


def test_rows_are_counted_exactly_where_they_are_few(tmp_path):
    # With BOS each document of 32 bytes is one row of T + 1 = 33 places.
    data = text_of(tmp_path / "t", [["x" * 32] * 5, ["y" * 32] * 3, ["v" * 32]], tmp_path / "c")
    with data.store:
        assert training_rows(data, seq_len=32, packing="bestfit", seed=1, enough=100) == 8
        # 5 and 3 documents are at least 4 and 2 rows by their ids alone.
        assert training_rows(data, seq_len=32, packing="bestfit", seed=1, enough=2) in (2, 4)


def test_enough_rows_are_no_news(tmp_path):
    data = text_of(tmp_path / "t", [["x" * 32] * 40, ["v" * 32]], tmp_path / "c")
    assert notes_of(plan_of(rows=8), data) == []


def test_fewer_rows_than_a_step_are_said_with_the_times_that_a_step_goes_through_the_text(tmp_path):
    data = text_of(tmp_path / "t", [["x" * 32] * 5, ["v" * 32]], tmp_path / "c")
    [note] = notes_of(plan_of(rows=8), data)
    assert "a step takes 8 rows and the training text has 5: each step goes through all of it 1.6 times" in note
    assert "--total-batch-size 160 or 192" in note


def no_row(folder: Path, cache: Path):
    # Both training shards are empty; validation has its document.
    return text_of(folder, [[""], [""], ["v" * 32]], cache)


def test_text_without_a_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="no training document"):
        notes_of(plan_of(), no_row(tmp_path / "t", tmp_path / "c"))


def text_on_ranks(runtime, folders: list[Path], texts: list[list[list[str]]], rows: int, val: str):
    folder = folders[runtime.rank]
    data = text_of(folder / "t", texts[runtime.rank], folder / "c", val=val)
    try:
        return notes_of(plan_of(rows=rows, world_size=runtime.world_size), data, runtime)
    except DataError as error:
        return str(error)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / str(rank) for rank in range(3)]
    for folder in made:
        folder.mkdir()
    return made


def test_fewer_rows_than_ranks_and_one_shard_are_defined_and_said(folders):
    # One shard, and half of it for validation: a few rows for three processes, three rows a step.
    texts = [[f"document number {i}, which is long" for i in range(4)]]
    first, *others = run_ranks(text_on_ranks, 3, folders, [texts] * 3, 6, "hash:0.5")
    assert others == [first, first]
    assert first[0] == "the text is one shard: one worker tokenises it, and all 3 processes read from it"
    assert "a step takes 6 rows and the training text has " in first[1]


def test_other_text_on_one_rank_is_refused_on_all_with_its_name(folders):
    texts = [[["x" * 32] * 9, ["v" * 32]], [["x" * 32] * 9, ["v" * 32]], [["x" * 32] * 8 + ["z" * 32], ["v" * 32]]]
    said = run_ranks(text_on_ranks, 3, folders, texts, 3, "last")
    assert said[0] == said[1] == said[2]
    assert said[0].startswith("the text (by content) is ")
    assert " on rank 2 and " in said[0]
    assert "shared disk" in said[0]
