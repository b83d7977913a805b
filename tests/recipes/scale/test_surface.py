"""The surface fit: known constants are found again, another optimizer agrees, intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstlight.recipes.scale.surface import Surface, fit_surface, fit_surfaces

# Hoffmann et al. 2022 (arXiv 2203.15556), equation 10 and appendix D.3.
HOFFMANN = Surface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, objective=0.0)


def published_grid() -> tuple[np.ndarray, np.ndarray]:
    sizes, flops = np.meshgrid(np.geomspace(7e7, 1e10, 6), np.geomspace(6e18, 3e21, 5))
    return sizes.ravel(), (flops / 6 / sizes).ravel()


def small_grid() -> tuple[np.ndarray, np.ndarray]:
    sizes, flops = np.meshgrid([180_224.0, 655_360.0, 1_720_320.0], [2.3e12, 7e12, 2.1e13])
    return sizes.ravel(), (flops / 7.1 / sizes).ravel()


def test_published_constants_are_recovered_from_their_own_surface() -> None:
    N, D = published_grid()
    found = fit_surface(N, D, HOFFMANN.loss(N, D))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(HOFFMANN, name), rel=1e-5), name
    assert found.at_bound == ()
    # Published: a = 0.46, b = 0.54 (table 2, approach 3): beta / (alpha + beta) = 0.28 / 0.62.
    assert found.a == pytest.approx(0.28 / 0.62, rel=1e-5)


def test_nine_points_without_noise_fix_five_numbers() -> None:
    N, D = small_grid()
    truth = Surface(E=0.9, A=30.0, B=200.0, alpha=0.3, beta=0.4, objective=0.0)
    found = fit_surface(N, D, truth.loss(N, D))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-5), name


NOISY = [2.3311, 2.0934, 1.9581, 2.4892, 2.1201, 1.8757, 2.8601, 2.2930, 1.9489]
"""Nine losses near a surface, in the order of sizes and then budgets."""


def noisy_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = np.repeat([180_224.0, 655_360.0, 1_720_320.0], 3)
    return sizes, np.tile([2.3e12, 7e12, 2.1e13], 3) / 7.1 / sizes, np.array(NOISY)


def test_another_optimizer_ends_at_the_same_fit() -> None:
    # scipy 1.17.1: minimize with BFGS and Nelder-Mead on sum(scipy.special.huber(0.003, logsumexp(...) - ln L)), the best
    # of two starts; ln A 3.48195358, ln B 5.31147456, ln E -0.08073909, alpha 0.3085308, beta 0.40142623.
    N, D, losses = noisy_grid()
    found = fit_surface(N, D, losses, delta=3e-3)
    assert found.objective == pytest.approx(1.7400639562e-05, rel=1e-6)
    assert found.alpha == pytest.approx(0.3085308, rel=1e-4)
    assert found.beta == pytest.approx(0.40142623, rel=1e-4)
    assert math.log(found.E) == pytest.approx(-0.08073909, rel=1e-3)
    assert math.log(found.A) == pytest.approx(3.48195358, rel=1e-4)
    # With the published threshold the least value is flat; scipy ends at 1.09485e-5.
    assert fit_surface(N, D, losses, delta=1e-3).objective <= 1.0948515e-05


def test_the_lowest_point_of_an_iso_flop_curve_is_where_a_search_finds_it() -> None:
    flops = 5.76e23
    best = HOFFMANN.best_params(flops)
    sizes = np.geomspace(1e9, 1e12, 200_001)
    searched = sizes[HOFFMANN.loss(sizes, flops / 6 / sizes).argmin()]
    assert best == pytest.approx(searched, rel=1e-4)
    # With another cost of a parameter and token the same minimum as with that much less compute.
    assert HOFFMANN.best_params(flops, flops_per_param_token=12.0) == pytest.approx(HOFFMANN.best_params(flops / 2))


def test_one_bad_point_moves_a_robust_fit_little() -> None:
    N, D = published_grid()
    losses = HOFFMANN.loss(N, D)
    losses[7] *= 1.2
    found = fit_surface(N, D, losses)
    assert found.alpha == pytest.approx(0.34, abs=0.01)
    assert pytest.approx(1.69, abs=0.02) == found.E


def test_rows_of_draws_are_fitted_as_each_alone() -> None:
    N, D = small_grid()
    truth = Surface(E=0.9, A=30.0, B=200.0, alpha=0.3, beta=0.4, objective=0.0)
    draws = truth.loss(N, D) * np.exp(0.002 * np.random.default_rng(5).standard_normal((12, 9)))
    together = fit_surfaces(N, D, draws, near=truth)
    for row in range(12):
        alone = fit_surface(N, D, draws[row])
        assert together.objective[row] == pytest.approx(alone.objective, rel=1e-4, abs=1e-12)


def test_data_without_a_trend_in_size_end_at_a_limit_and_say_so() -> None:
    N, D = small_grid()
    # The loss depends on tokens only; alpha and A are anything, or nothing.
    found = fit_surfaces(N, D, (1.0 + 200 * D**-0.4)[None])
    assert found.at_bound[0, 0] or found.at_bound[0, 3] or found.A[0] * N.min() ** -found.alpha[0] < 1e-3


def test_too_few_points_and_impossible_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="4 points"):
        fit_surface(np.array([1.0, 1, 2, 2]), np.array([1.0, 2, 1, 2]), np.ones(4))
    N, D = small_grid()
    with pytest.raises(ValueError, match="above zero"):
        fit_surface(N, D, np.array([1.0] * 8 + [-1.0]))
    assert math.isfinite(fit_surface(N, D, np.ones(9)).E), "constant losses are odd, not an error"
