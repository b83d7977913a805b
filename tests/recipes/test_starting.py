"""Where a stage starts from: rates of its parent or of the dial, and the line of runs before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstlight.model.config import GPTConfig
from firstlight.recipes.record import new_record, new_run_dir, write_run
from firstlight.recipes.starting import Start, ancestors


def start(**plan: float) -> Start:
    config = GPTConfig.from_depth(3, vocab_size=300, max_seq_len=32)
    record = new_record("parent", config={"plan": plan} if plan else {})
    return Start(record, Path("parent"), Path("parent/checkpoints/step_00000009"), config, tokenizer=None)


def test_rates_are_a_part_of_those_of_the_parent():
    found = start(embedding_lr=0.4, unembedding_lr=0.008, matrix_lr=0.02, scalar_lr=0.5).rates(0.25)
    assert found == pytest.approx(
        {"embedding_lr": 0.1, "unembedding_lr": 0.002, "matrix_lr": 0.005, "scalar_lr": 0.125}
    )


def test_an_imported_model_has_the_rates_of_the_dial():
    # Width 192 is a quarter of 768, so Adam's rates are twice those at 768: 0.2 and 0.004.
    found = start().rates(1.0)
    assert found == pytest.approx({"embedding_lr": 0.4, "unembedding_lr": 0.008, "matrix_lr": 0.02, "scalar_lr": 0.5})


def test_the_line_of_runs_ends_where_one_is_gone(own_folders):
    for name, parents in (("base", ()), ("mid", ("base",)), ("sft", ("mid",)), ("lonely", ("gone",))):
        folder = new_run_dir(own_folders, name, prefix="")
        write_run(folder, new_record(name, parents=parents))
    assert [run.name for run in ancestors(new_record("rl", parents=("sft",)), own_folders)] == [
        "rl",
        "sft",
        "mid",
        "base",
    ]
    assert [run.name for run in ancestors(new_record("x", parents=("lonely",)), own_folders)] == ["x", "lonely"]
