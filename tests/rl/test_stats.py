"""Numbers of a step by hand, and the same from two ranks as from one."""

from __future__ import annotations

import json
import math

import pytest
from ranks import run_ranks
from rl.toy import CPU, group, rollout

from firstlight.rl.advantages import group_advantages
from firstlight.rl.rollouts import Group
from firstlight.rl.stats import make_stats, over_ranks, sample_texts, sums_of_groups
from firstlight.runtime.channel import Channel
from firstlight.tokens.conversation import Part


def one_rank(groups, **more):
    return make_stats(over_ranks({**sums_of_groups(groups), **more}, Channel()), step=3, update=0, texts=())


def test_two_groups_by_hand() -> None:
    first, second = group(1.0, 0.0, 0.0, 0.5), group(1.0, None, 1.0, None, prompt=1)
    called = rollout(
        0.0, ids=(1, 2, 3, 4), logprobs=(-1.0, -2.0, -8.0, -3.0), is_forced=(False, False, True, False),
        parts=(Part("python", "1"), Part("output", "1"), Part("text", "x")), has_ended=False, has_format=False,
    )  # fmt: skip
    first = Group(0, first.problem, (*first.rollouts[:1], called, *first.rollouts[2:]))
    stats = one_rank([first, second, Group(2, second.problem, ())], num_targets=11, sampling_s=1.5, scoring_s=0.25)
    assert (stats.step, stats.num_prompts, stats.num_samples, stats.num_targets) == (3, 3, 8, 11)
    assert stats.num_too_long == 1
    # Rewards 1, 0, 0, 0.5, 1, 1: mean 3.5 / 6, mean of squares 3.25 / 6.
    assert stats.reward_mean == pytest.approx(3.5 / 6)
    assert stats.reward_std == pytest.approx(math.sqrt(3.25 / 6 - (3.5 / 6) ** 2))
    assert stats.signal_frac == 0.5
    # One of four right: pass@1 1/4, pass@2 1/2, pass@4 1. Two of two: 1, 1, and pass@4 cannot be known.
    assert stats.pass_at_k == pytest.approx({1: (0.25 + 1) / 2, 2: (0.5 + 1) / 2, 4: 1.0})
    assert (stats.format_frac, stats.ended_frac, stats.calls_mean) == (7 / 8, 7 / 8, 1 / 8)
    # Seven answers of three chosen ids at log 0.5, one of three at -1, -2 and -3.
    assert (stats.length_mean, stats.length_max) == (3.0, 3)
    assert stats.entropy_nats == pytest.approx((21 * math.log(2) + 6) / 24)
    assert (stats.num_invalid, stats.invalid) == (2, {"NaN": 2})
    assert (stats.sampling_s, stats.scoring_s) == (1.5, 0.25)
    assert stats.kl_nats is stats.ratio_mean is stats.clipped_frac is stats.exact_entropy_nats is None
    assert "without reward 2 (NaN 2)" in stats.describe()


def test_sums_of_the_scoring_pass_are_per_target() -> None:
    stats = one_rank([group(1.0, 0.0)], num_targets=4, entropy=2.0, kl=0.4, ratio=4.4, num_clipped=1)
    assert stats.exact_entropy_nats == 0.5
    assert stats.kl_nats == pytest.approx(0.1)
    assert stats.ratio_mean == pytest.approx(1.1)
    assert stats.clipped_frac == 0.25


def test_no_valid_reward_is_none_in_json_and_no_error() -> None:
    stats = one_rank([group(None, None)])
    assert math.isnan(stats.reward_mean)
    values = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert values["reward_mean"] is None
    assert values["pass_at_k"] == {}
    assert "texts" not in values
    assert isinstance(stats.describe(), str)


def rank_part(runtime):
    groups = [group(1.0, 0.0, None, prompt=0), group(0.5, 0.5, 1.0, prompt=1)]
    sums = {**sums_of_groups(groups[runtime.rank :: runtime.world_size]), "sampling_s": 1.0 + runtime.rank}
    stats = make_stats(over_ranks(sums, runtime.control), step=0, update=0, texts=())
    return {**stats.to_dict(), "sampling_s": None}, stats.sampling_s


def test_two_ranks_see_what_one_sees() -> None:
    one, _ = rank_part(CPU)
    for values, sampling_s in run_ranks(rank_part, 2):
        assert sampling_s == 2.0
        assert values.keys() == one.keys()
        for name, value in values.items():
            assert value == (pytest.approx(one[name]) if isinstance(value, float | dict) and value else one[name])


def test_texts_are_the_best_and_the_worst_of_groups_with_a_signal() -> None:
    groups = [group(1.0, 1.0, prompt=0), group(0.0, 0.5, 1.0, prompt=1), group(None, prompt=2)]
    advantages = [group_advantages(g.rewards) for g in groups]
    texts = sample_texts(groups, advantages, 4)
    assert [(t.source, t.reward) for t in texts] == [("toy:1", 1.0), ("toy:1", 0.0), ("toy:0", 1.0), ("toy:0", 1.0)]
    assert texts[0].advantage == 0.5
    assert (texts[0].prompt, texts[0].parts, texts[0].answer) == ("how many?", (("text", "AB"),), "4")
    assert len(sample_texts(groups, advantages, 9)) == 5
    assert sample_texts(groups, advantages, 0) == []
