"""GSM8K from files: forms of a folder, damaged rows, numbers as their makers write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstlight.data.sources.base import Source, SourceShard
from firstlight.errors import DataError
from firstlight.rl.environments import gsm8k
from firstlight.rl.environments.table import open_environment

ROWS = [
    {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24\n#### 72"},
    {"question": "How much?", "answer": "It is $1,200.\n#### 1,200"},
]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def opened(folder: Path):
    return open_environment(f"gsm8k:{folder}", cache_dir=folder)


def test_a_folder_of_json_lines_and_parquet(tmp_path) -> None:
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "test-00000-of-00001.parquet")
    environment = opened(tmp_path)
    assert [environment.num_problems(split) for split in ("train", "test")] == [2, 1]
    problem = environment.problem("train", 1)
    assert (problem.messages[0].text, problem.answer, problem.source) == ("How much?", "1200", "train.jsonl.gz:1")
    texts = ("#### 1200", "#### 1,200.00", "#### $1,200", "#### 12000", "1200", "#### 5\n#### 1200")
    assert [environment.reward(problem, text, ()) for text in texts] == [1, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    "row", [{"question": "x"}, {"question": "x", "answer": "72"}, {"question": "", "answer": "#### 1"}, 5]
)
def test_a_row_of_something_else_is_named(tmp_path, row) -> None:
    (tmp_path / "train.jsonl").write_text(lines([ROWS[0], row]))
    (tmp_path / "test.jsonl").write_text(lines(ROWS))
    with pytest.raises(DataError, match=r"train\.jsonl:1 is no problem"):
        opened(tmp_path)


def test_files_that_are_missing_or_damaged_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        opened(tmp_path / "nowhere")
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    with pytest.raises(DataError, match="one file with test in its name"):
        opened(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": ')
    with pytest.raises(DataError, match=r"test\.jsonl cannot be read"):
        opened(tmp_path)


def test_the_hubs_files_are_taken_by_their_split(tmp_path, monkeypatch) -> None:
    for name, rows in (("train-0.parquet", ROWS), ("test-0.parquet", ROWS[:1])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    shards = tuple(SourceShard(f"main/{n}", tmp_path / n, 1) for n in ("train-0.parquet", "test-0.parquet"))
    source = Source("gsm8k", shards, val_shard="main/test-0.parquet")
    monkeypatch.setattr(gsm8k, "open_hub", lambda hub, *, cache_dir: source)
    environment = open_environment("gsm8k", cache_dir=tmp_path)
    assert [environment.num_problems(split) for split in ("train", "test")] == [2, 1]


def test_the_real_ones(shared_data) -> None:
    environment = opened(shared_data / "chat")
    assert [environment.num_problems(split) for split in ("train", "test")] == [7473, 1319]
    assert environment.problem("train", 0).answer == "72"
