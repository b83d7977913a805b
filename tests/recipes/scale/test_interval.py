"""Intervals from draws: the middle 95 %, and what draws without a value do to them."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.recipes.scale.interval import Interval, interval_of


def test_the_middle_of_numbered_draws() -> None:
    # Of 1 to 1000, 2.5 % are 25 and below, 97.5 % are 975 and below.
    found = interval_of(500.0, np.arange(1, 1001))
    assert (found.value, found.low, found.high) == (500.0, 25.0, 975.0)
    assert found.is_determined


@pytest.mark.parametrize(("num_bad", "is_open"), [(20, False), (30, True)])
def test_draws_without_a_value_count_against_both_ends(num_bad, is_open) -> None:
    draws = np.concatenate([np.linspace(1, 2, 1000 - num_bad), np.full(num_bad, np.nan)])
    found = interval_of(1.5, draws)
    assert (found.low is None, found.high is None) == (is_open, is_open)


def test_infinite_draws_open_their_side_only() -> None:
    found = interval_of(1.5, np.concatenate([np.linspace(1, 2, 900), np.full(100, np.inf)]))
    assert found.high is None
    assert found.low == pytest.approx(1.028, abs=0.002)
    assert not found.is_determined
    assert "above not determined" in found.describe()


def test_words() -> None:
    assert Interval(0.512, 0.4, 0.66).describe(".2f") == "0.51 (0.40 to 0.66)"
    assert Interval(1234567.0, 1e6, 2e6).describe() == "1,230,000 (1,000,000 to 2,000,000)"
    assert Interval(1.35e12, 1e7, 2e13).describe() == "1.35e12 (1.00e07 to 2.00e13)"
    assert Interval(3.0, None, 5.0).describe() == "3 (5 or less; below not determined)"
    assert Interval(3.0, None, None).describe() == "not determined (best guess 3)"
    assert interval_of(float("nan"), np.array([np.nan])) == Interval(None, None, None)
