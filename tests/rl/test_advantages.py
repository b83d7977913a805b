"""Advantages of a group by hand."""

from __future__ import annotations

import statistics

import pytest

from firstlight.rl.advantages import STD_FLOOR, group_advantages, has_signal


def test_a_group_of_four_by_hand() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages([1.0, 0.5, 0.25, 0.25]) == [0.5, 0.0, -0.25, -0.25]


def test_divided_by_the_standard_deviation_of_the_group() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5]
    expected = [(r - 0.5) / (statistics.stdev(rewards) + STD_FLOOR) for r in rewards]
    assert group_advantages(rewards, scale="std") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", ["none", "std"])
def test_a_sample_without_a_reward_is_in_no_mean(scale) -> None:
    with_one = group_advantages([1.0, None, 0.0, None], scale=scale)
    assert with_one[1] is None
    assert with_one[3] is None
    assert [with_one[0], with_one[2]] == group_advantages([1.0, 0.0], scale=scale)


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("rewards", [[0.1] * 3, [1.0], [None, 0.3], [0.7, None, 0.7]])
def test_nothing_to_compare_gives_exactly_zero(rewards, scale) -> None:
    # 0.1 three times has a mean that is not 0.1: the sum of rounded numbers would leave a signal that is none.
    assert not has_signal(rewards)
    assert group_advantages(rewards, scale=scale) == [None if r is None else 0.0 for r in rewards]


def test_no_rewards_at_all() -> None:
    assert group_advantages([None, None]) == [None, None]
    assert group_advantages([]) == []
    assert not has_signal([None])


def test_rewards_that_differ_are_a_signal() -> None:
    assert has_signal([0.0, None, 1.0])
