"""Scores over problems against the standard library's statistics, and pairs against Student's t by hand."""

from __future__ import annotations

import json
import math
import statistics

import pytest
from ranks import run_ranks
from rl import toy
from rl.toy import CPU, ToyEnvironment

from firstlight.errors import ConfigError, DataError
from firstlight.rl.scores import ProblemScore, RewardScores, compare_rewards, evaluate_rewards, scores_from_dict

SETTINGS = {
    "split": "test", "max_problems": 5, "samples_per_prompt": 3, "temperature": 1.0, "top_k": None, "max_new_tokens": 8,
    "seed": 1,
}  # fmt: skip


def scores(*rewards: tuple[float | None, ...], start: int = 0) -> RewardScores:
    rows = [ProblemScore(f"p{start + i}", r, num_format=1, num_ended=2, num_chosen=10) for i, r in enumerate(rewards)]
    return RewardScores("toy", "test", len(rewards[0]), 1.0, tuple(rows))


def ending(problem, text: str) -> float:
    return len(text) % 3 / 2


def evaluate(runtime=CPU, environment=None, **changes) -> RewardScores:
    model = toy.tiny_gpt()
    model.lm_head.weight.data[260] *= 4  # so that some answers end
    return evaluate_rewards(
        model, environment or ToyEnvironment(ending, num=9), toy.byte_tokenizer(), runtime=runtime,
        **{**SETTINGS, **changes},
    )  # fmt: skip


def test_a_problem_is_one_observation() -> None:
    found = scores((1.0, 0.0), (1.0, 1.0), (0.5, None), (None, None))
    means = [0.5, 1.0, 0.5]
    assert found.mean_reward == pytest.approx(statistics.mean(means))
    assert found.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(3))
    assert found.num_invalid == 3
    # pass@1: one of two, two of two, none of one. pass@2 only where there are two.
    assert found.pass_at_k(1) == pytest.approx((0.5, statistics.stdev([0.5, 1.0, 0.0]) / math.sqrt(3)))
    assert found.pass_at_k(2)[0] == 1.0
    assert (found.format_frac, found.ended_frac, found.length_mean) == (4 / 8, 1.0, 5.0)


def test_scores_survive_json() -> None:
    found = scores((1.0, 0.0), (None, 0.25))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert scores_from_dict(values) == found
    assert values["reward_mean"] == 0.375
    assert values["pass_at_2"] == 1.0
    nothing = json.loads(json.dumps(scores((None, None)).to_dict(), allow_nan=False))
    assert nothing["reward_mean"] is None
    assert isinstance(scores((None, None)).describe(), str)


def test_two_models_are_compared_problem_by_problem() -> None:
    before, after = scores((0.0,), (0.5,), (0.2,), (1.0,)), scores((0.3,), (0.7,), (0.6,), (1.0,))
    found = compare_rewards(before, after)
    differences = [0.3, 0.2, 0.4, 0.0]
    assert found.difference == pytest.approx(0.225)
    assert found.stderr == pytest.approx(statistics.stdev(differences) / 2)
    # t with 3 degrees of freedom: 97.5 % at 3.18245.
    assert found.high - found.difference == pytest.approx(3.18245 * found.stderr, rel=1e-5)
    assert found.num_problems == 4
    assert not found.is_shown
    back = compare_rewards(after, before)
    assert (back.difference, back.p_value) == pytest.approx((-found.difference, found.p_value))


def test_only_problems_that_both_have_are_compared() -> None:
    found = compare_rewards(scores((0.0,), (0.0,), (None,)), scores((1.0,), (1.0,), (1.0,)))
    assert (found.num_problems, found.difference, found.p_value, found.is_shown) == (2, 1.0, 0.0, True)
    with pytest.raises(DataError, match="1 problems are in both"):
        compare_rewards(scores((0.0,), (0.0,)), scores((1.0,), (1.0,), start=1))


def test_an_evaluation_answers_a_fixed_choice_of_problems() -> None:
    found = evaluate()
    assert len({row.source for row in found.rows}) == len(found.rows) == 5
    assert all(row.source.startswith("test:") for row in found.rows)
    assert found.num_samples == 15
    assert 0 < found.ended_frac < 1
    assert 1 <= found.length_mean <= 8
    assert evaluate() == found
    other = evaluate(seed=2)
    assert [row.source for row in other.rows] == [row.source for row in found.rows]
    assert other != found
    assert len(evaluate(max_problems=None).rows) == 9
    assert len(evaluate(max_problems=99).rows) == 9


def rank_scores(runtime):
    return evaluate(runtime).to_dict()


def test_two_ranks_find_what_one_finds() -> None:
    assert run_ranks(rank_scores, 2) == [rank_scores(CPU)] * 2


def test_bad_rewards_are_left_out() -> None:
    values = iter([math.nan, 1.0, None] * 5)
    found = evaluate(environment=ToyEnvironment(lambda problem, text: next(values), num=9))
    assert math.isfinite(found.mean_reward)
    assert found.num_invalid > 0


def test_values_without_meaning() -> None:
    with pytest.raises(ConfigError, match="max_problems 0 is too small"):
        evaluate(max_problems=0)
    with pytest.raises(ConfigError, match="samples_per_prompt 0 is too small"):
        evaluate(samples_per_prompt=0)
    with pytest.raises(DataError, match="toy has no test problem"):
        evaluate(environment=ToyEnvironment(num=0))


def test_prompts_that_are_too_long_are_counted_and_in_no_mean() -> None:
    class Long(ToyEnvironment):
        def problem(self, split, index):
            problem = super().problem(split, index)
            if index < 8:
                return problem
            from dataclasses import replace

            from firstlight.tokens.conversation import Message

            return replace(problem, messages=(Message.of("user", "x" * 70),))

    found = evaluate(environment=Long(ending, num=9), max_problems=None)
    assert (len(found.rows), found.num_too_long) == (8, 1)
