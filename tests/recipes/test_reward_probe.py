"""When rewards are scored, what is kept of them, and the difference that is told at the end."""

from __future__ import annotations

import json
from statistics import mean, stdev

import pytest

from firstlight.recipes.reward_probe import RewardProbe
from firstlight.rl.scores import ProblemScore, RewardScores
from firstlight.runtime.console import Console


def scores(*rewards: float) -> RewardScores:
    rows = tuple(ProblemScore(f"p{i}", (reward,), 1, 1, 3) for i, reward in enumerate(rewards))
    return RewardScores("toy", "test", 1, 1.0, rows)


def probe(tmp_path, found: list[RewardScores], *, every: int = 0, is_main: bool = True) -> RewardProbe:
    return RewardProbe(
        lambda model: found.pop(0), every=every, run_dir=tmp_path, console=Console(is_main=False), is_main=is_main
    )


def test_it_is_due_before_the_first_step_and_at_the_interval_but_the_end_has_its_own(tmp_path):
    due = RewardProbe(lambda model: scores(0.0), every=5, run_dir=tmp_path, console=None, is_main=False).due
    assert [step for step in range(12) if due(step, is_last=False)] == [0, 5, 10]
    assert not due(10, is_last=True)


def test_the_difference_is_over_the_same_problems(tmp_path):
    before, after = (0.0, 0.5, 0.25, 1.0), (0.5, 0.5, 1.0, 1.0)
    one = probe(tmp_path, [scores(*before), scores(*after)])
    one.measure(None, 0, is_over=lambda: False)
    row = one.last(None, 7)
    differences = [b - a for a, b in zip(before, after, strict=True)]
    assert row["reward_before"] == pytest.approx(mean(before))
    assert row["reward_difference"] == pytest.approx(mean(differences))
    assert row["reward_difference_stderr"] == pytest.approx(stdev(differences) / 2)
    assert "rows" not in row
    assert sorted(path.name for path in (tmp_path / "rewards").iterdir()) == [
        "step_00000000.json",
        "step_00000007.json",
    ]
    assert len(json.loads((tmp_path / "rewards" / "step_00000007.json").read_text())["rows"]) == 4


def test_a_difference_that_cannot_be_told_does_not_spoil_the_end(tmp_path):
    one = probe(tmp_path, [scores(0.0), scores(1.0)])
    one.measure(None, 0, is_over=lambda: False)
    row = one.last(None, 3)
    assert row["reward_mean"] == 1.0
    assert "reward_difference" not in row


def test_without_a_score_from_before_the_end_stands_alone(tmp_path):
    row = probe(tmp_path, [scores(1.0, 0.0)]).last(None, 3)
    assert row["reward_mean"] == 0.5
    assert "reward_difference" not in row
    probe(tmp_path / "none", [scores(1.0, 0.0)], is_main=False).last(None, 3)
    assert not (tmp_path / "none").exists()
