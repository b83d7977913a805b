"""Lowest points of parabolas, against numpy's polyfit and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstlight.recipes.scale.parabola import FARTHEST_FACTOR, fit_minima, power_law


def test_three_points_give_the_lowest_point_of_polyfit() -> None:
    sizes = np.array([180_224.0, 655_360.0, 1_720_320.0])
    losses = np.array([2.06, 1.98, 2.03])
    c2, c1, c0 = np.polyfit(np.log(sizes), losses, 2)
    found = fit_minima(sizes, losses[None])
    assert found.log_params[0] == pytest.approx(-c1 / (2 * c2), rel=1e-9)
    assert found.losses[0] == pytest.approx(c0 - c1**2 / (4 * c2), rel=1e-9)


def test_more_points_are_least_squares_and_draws_are_rows() -> None:
    draw = np.random.default_rng(3)
    sizes = np.geomspace(1e5, 1e7, 6)
    losses = 2 + 0.1 * (np.log(sizes) - 14) ** 2 + 0.01 * draw.standard_normal((4, 6))
    found = fit_minima(sizes, losses)
    for row in range(4):
        c2, c1, _ = np.polyfit(np.log(sizes), losses[row], 2)
        assert found.log_params[row] == pytest.approx(-c1 / (2 * c2), rel=1e-8)


def test_what_a_parabola_cannot_say_is_not_a_number() -> None:
    sizes = np.exp([1.0, 2.0, 3.0])
    losses = np.array([[1.0, 2.0, 1.0], [3.0, 2.0, 1.05], [1.05, 2.0, 3.0], [1.0, 1.0, 1.0]])
    # A hill; lowest points by hand for -1 and -0.95 of slope difference 0.05: 0.5 - ... far right; far left; a flat line.
    found = fit_minima(sizes, losses)
    assert math.isnan(found.log_params[0])
    assert found.log_params[1] == math.inf
    assert found.log_params[2] == -math.inf
    assert math.isnan(found.log_params[3])
    assert math.log(FARTHEST_FACTOR) < 1


def test_two_sizes_are_no_parabola() -> None:
    with pytest.raises(ValueError, match="2 sizes"):
        fit_minima(np.array([1.0, 2.0, 2.0]), np.ones((1, 3)))


def test_power_law_is_exact_on_a_power_law_and_nothing_where_a_point_is_missing() -> None:
    flops = np.array([1e12, 3e12, 9e12])
    sizes = np.stack([np.log(0.09 * flops**0.49), np.array([1.0, np.nan, 2.0]), np.array([1.0, np.inf, 2.0])])
    exponent, factor = power_law(np.log(flops), sizes)
    assert exponent[0] == pytest.approx(0.49, abs=1e-12)
    assert math.exp(factor[0]) == pytest.approx(0.09, rel=1e-9)
    assert np.isnan(exponent[1:]).all()
