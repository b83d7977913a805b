"""The recipe of RL at tiny size: what a run leaves behind, and that it learns, skips and refuses what it should."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from firstlight.errors import ConfigError, DataError
from firstlight.recipes import base, rl
from firstlight.recipes.record import read_run
from firstlight.recipes.settings import BaseSettings, RlSettings
from firstlight.rl.environments.base import Problem
from firstlight.runtime.metrics import read_metrics
from firstlight.tokens.conversation import Message

COMMON = {"dtype": "fp32", "device": "cpu", "compile": "off", "threads": 1, "workers": 0, "eval_every": 0}
TINY = {
    **COMMON, "init": "start", "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 6, "num_iterations": 4,
    "reward_problems": 6, "reward_samples": 2, "lr_frac": 0.3,
}  # fmt: skip


class Spaces:
    """Rewards answers by how many of their characters are spaces; the model does not need to know anything for that."""

    name, uses_python = "spaces", False

    def __init__(self, reward=None) -> None:
        self._reward = reward

    def num_problems(self, split):
        return 20

    def problem(self, split, index):
        return Problem((Message.of("user", f"{index}"),), "", f"{split}:{index}")

    def reward(self, problem, text, parts):
        return self._reward(text) if self._reward else text.count(" ") / max(1, len(text))

    def has_format(self, problem, text):
        return True


@pytest.fixture
def start(tiny_corpus: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base run, and answers that count whether they end or not: its model does not know how."""
    base.train_base(
        BaseSettings(
            run="start", data=str(tiny_corpus), val="last", depth=1, vocab_size=320, max_seq_len=32, total_batch_size=128,
            num_iterations=4, sample_every=0, **COMMON,
        )
    )  # fmt: skip
    real = rl.RolloutBatches
    monkeypatch.setattr(rl, "RolloutBatches", lambda *args, **options: real(*args, **options, only_ended=False))


def test_a_run_leaves_rewards_before_and_after_and_its_answers(start, own_folders, monkeypatch):
    monkeypatch.setattr(rl, "open_environment", lambda *_, **__: Spaces())
    record = rl.train_rl(RlSettings(run="r", **TINY))
    assert (record.recipe, record.parents, record.status) == ("rl", ("start",), "done")
    assert {"reward_mean", "reward_before", "reward_difference", "steps"} <= set(record.final)
    rows = read_metrics(own_folders / "r" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "rl"] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if row["kind"] == "reward"] == [0, 4]
    assert all(row["texts"] and row["num_samples"] == 16 for row in rows if row["kind"] == "rl")
    before = json.loads((own_folders / "r" / "rewards" / "step_00000000.json").read_text())
    assert len(before["rows"]) == 6
    # One update of a step is one group's 4 answers to each of 4 prompts: 16 samples.
    assert [row["num_prompts"] for row in rows if row["kind"] == "rl"] == [4, 4, 4, 4]


def test_rewards_that_are_no_numbers_are_counted_and_never_reach_the_weights(start, own_folders, monkeypatch):
    def reward(text: str) -> float | None:
        return {0: float("nan"), 1: None, 2: float("inf")}.get(len(text) % 5, len(text) / 10)

    monkeypatch.setattr(rl, "open_environment", lambda *_, **__: Spaces(reward))
    rl.train_rl(RlSettings(run="r", **TINY))
    rows = read_metrics(own_folders / "r" / "metrics.jsonl")
    assert sum(row["num_invalid"] for row in rows if row["kind"] == "rl") > 0
    assert [row for row in rows if "nonfinite" in row and row["kind"] == "train" and not row.get("skipped")] == []
    assert read_run(own_folders / "r").status == "done"


def test_steps_in_which_all_answers_are_worth_the_same_change_nothing_and_do_not_end_the_run(
    start, own_folders, monkeypatch
):
    monkeypatch.setattr(rl, "open_environment", lambda *_, **__: Spaces(lambda text: 0.0))
    record = rl.train_rl(RlSettings(run="r", **{**TINY, "num_iterations": 8}))
    assert record.final["num_skipped"] == 8, "more in a row than numbers that are not finite may be"
    assert record.final["reward_difference"] == 0


def test_an_environment_without_any_reward_ends_the_run_with_words(start, monkeypatch):
    monkeypatch.setattr(rl, "open_environment", lambda *_, **__: Spaces(lambda text: None))
    with pytest.raises(DataError, match="no sample of spaces had a reward"):
        rl.train_rl(RlSettings(run="r", **TINY))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": "arithmetik"}, "did you mean arithmetic"),
        ({"total_batch_size": 100}, "--prompts-per-step 4"),
        ({"shard_weights": True}, "--shard-weights"),
        ({"format_reward": 1.5}, "format"),
        ({"init": None}, "`firstlight train rl` starts from"),
    ],
)
def test_what_cannot_work_is_refused_before_step_0(start, own_folders, changes, words):
    with pytest.raises(ConfigError, match=words):
        rl.train_rl(replace(RlSettings(run="r", **TINY), **changes))
    assert not (own_folders / "r").exists()


def test_values_that_cannot_be_sampled_or_rewarded_with_are_refused_before_there_is_a_folder(start, own_folders):
    """In one test, since each would train a base run first."""
    cases = [
        ({"updates_per_rollout": 0}, "--updates-per-rollout 0"),
        ({"prompts_per_step": 0}, "--prompts-per-step 0"),
        ({"samples_per_prompt": 1}, "--samples-per-prompt 1"),
        ({"clip_high": 0.3}, "--clip-high without --clip"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"top_k": -3}, "--top-k -3"),
        ({"kl": float("nan")}, "--kl nan"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"max_seq_len": 1}, "--max-seq-len 1"),
        ({"reward_problems": 0}, "--reward-problems 0"),
        ({"reward_samples": 0}, "--reward-samples 0"),
    ]
    for changes, words in cases:
        with pytest.raises(ConfigError, match=words):
            rl.train_rl(replace(RlSettings(run="r", **TINY), **changes))
        assert not (own_folders / "r").exists()


def test_an_environment_is_known_by_what_it_asks():
    class Other(Spaces):
        def problem(self, split, index):
            return replace(super().problem(split, index), answer="yes" if index == 3 else "")

    assert rl.environment_hash(Spaces()) == rl.environment_hash(Spaces())
    assert rl.environment_hash(Spaces()) != rl.environment_hash(Other())
