"""A launch is a real training run in a process of its own, with the options that were given."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from firstlight.errors import ConfigError, DataError
from firstlight.recipes.bench.launch import bench_launch, first_step_unix_s, launch_arguments


def test_the_first_training_row_counts(tmp_path: Path) -> None:
    rows = [
        {"kind": "run", "time_unix_s": 1.0},
        {"kind": "train", "time_unix_s": 7.5},
        {"kind": "train", "time_unix_s": 9},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert first_step_unix_s(tmp_path) == 7.5
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no training step"):
        first_step_unix_s(tmp_path)


def test_arguments_name_what_was_asked_for(tiny_options, tmp_path: Path) -> None:
    words = launch_arguments(replace(tiny_options, threads=3), tmp_path, "n")
    pairs = dict(itertools.pairwise(words))
    asked = {"--depth": "1", "--vocab-size": "96", "--max-seq-len": "33", "--threads": "3", "--compile": "off"}
    assert asked.items() <= pairs.items()
    assert "--n-kv-head" not in words
    assert launch_arguments(replace(tiny_options, compile="auto"), tmp_path, "n").count("on") == 1


def test_one_cold_and_one_warm_launch(tiny_options) -> None:
    options = replace(tiny_options, vocab_size=400, threads=1)
    report = bench_launch(options, rounds=1)
    for kind in ("cold", "warm"):
        assert 0 < report.figures[f"{kind}_s"] < report.figures[f"{kind}_total_s"]
    assert report.figures["rounds"] == 1


def test_a_launch_that_fails_says_why(tiny_options) -> None:
    with pytest.raises(ConfigError, match=r"cold-0 failed.*--device"):
        bench_launch(replace(tiny_options, device="none"), rounds=1)


def test_no_round_is_refused_before_anything_starts(tiny_options) -> None:
    with pytest.raises(ConfigError, match="--rounds 0"):
        bench_launch(replace(tiny_options, rounds=0))
