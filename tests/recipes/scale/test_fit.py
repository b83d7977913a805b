"""Both approaches over one set of points: they agree on a law, and their intervals hold it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstlight.recipes.scale import fit as fits
from firstlight.recipes.scale.fit import Point, fit_study
from firstlight.recipes.scale.surface import Surface

TRUTH = Surface(E=0.9, A=30.0, B=200.0, alpha=0.3, beta=0.4, objective=0.0)
K = 7.0
FLOPS = (3e12, 1e13, 3e13)


def points(sizes, *, noise=None) -> list[Point]:
    made = []
    for number, flops in enumerate(FLOPS, 1):
        for size in sizes:
            tokens = round(flops / K / size)
            bpb = float(TRUTH.loss(np.array(size), np.array(tokens)))
            made.append(
                Point(number, flops, int(size), tokens, bpb + (noise[len(made)] if noise is not None else 0.0), 0.01)
            )
    return made


def test_without_noise_the_surface_is_found_and_the_parabolas_lie_near_its_minimum() -> None:
    best = TRUTH.best_params(FLOPS[1], flops_per_param_token=K)
    found = fit_study(
        points(best * np.array([0.4, 1.0, 2.5])), seed_noise=1e-6, is_noise_measured=True,
        document_shifts=np.zeros((1, 9)), num_draws=50,
    )  # fmt: skip
    assert found.surface is not None
    assert found.flops_per_param_token == pytest.approx(K, rel=1e-5)
    assert found.surface.surface.alpha == pytest.approx(0.3, rel=1e-3)
    assert found.surface.params_exponent.value == pytest.approx(0.4 / 0.7, rel=1e-3)
    assert found.surface.best_params[1].value == pytest.approx(best, rel=1e-3)
    # A parabola through three points of a curve that is none: near, not equal.
    assert found.budgets[1].best_params.value == pytest.approx(best, rel=0.15)
    middle = found.budgets[1]
    assert middle.tokens_per_param.value == pytest.approx(middle.best_tokens.value / middle.best_params.value, rel=1e-9)
    assert middle.best_tokens.value == pytest.approx(FLOPS[1] / K / middle.best_params.value, rel=1e-5)
    assert found.params_exponent.value == pytest.approx(0.4 / 0.7, abs=0.05)
    assert found.tokens_exponent.value == pytest.approx(1 - found.params_exponent.value)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    sizes = TRUTH.best_params(FLOPS[1], flops_per_param_token=K) * np.array([0.35, 1.0, 3.0])
    clean = fit_study(
        points(sizes), seed_noise=1e-9, is_noise_measured=True, document_shifts=np.zeros((1, 9)), num_draws=10
    )
    draw = np.random.default_rng(11)
    inside = {"exponent": 0, "alpha": 0, "best": 0}
    num = 25
    for trial in range(num):
        found = fit_study(
            points(sizes, noise=0.004 * draw.standard_normal(9)), seed_noise=0.004, is_noise_measured=True,
            document_shifts=np.zeros((1, 9)), num_draws=100, seed=trial,
        )  # fmt: skip
        assert found.surface is not None
        for name, interval, truth in (
            ("exponent", found.surface.params_exponent, 0.4 / 0.7),
            ("alpha", found.surface.alpha, 0.3),
            ("best", found.budgets[1].best_params, clean.budgets[1].best_params.value),
        ):
            low = -math.inf if interval.low is None else interval.low
            high = math.inf if interval.high is None else interval.high
            inside[name] += low <= truth <= high
    # Of 25, fewer than 20 would have a chance below 1 in 1000 at 95 %.
    assert min(inside.values()) >= 20, inside


def test_documents_that_all_cells_share_move_the_best_size_less_than_their_standard_errors_would() -> None:
    made = points(TRUTH.best_params(FLOPS[1], flops_per_param_token=K) * np.array([0.4, 1.0, 2.5]))
    common = np.random.default_rng(2).standard_normal((200, 1)) * 0.01 * np.ones((1, 9))
    shared = fit_study(made, seed_noise=0.001, is_noise_measured=False, document_shifts=common, num_draws=200)
    alone = fit_study(made, seed_noise=0.001, is_noise_measured=False, num_draws=200)

    def width(found) -> float:
        interval = found.budgets[1].best_params
        return math.inf if not interval.is_determined else math.log(interval.high / interval.low)

    assert width(shared) < 0.5 * width(alone)
    assert "too wide" in alone.documents


def test_too_much_noise_is_called_not_determined() -> None:
    made = points(TRUTH.best_params(FLOPS[1], flops_per_param_token=K) * np.array([0.6, 1.0, 1.6]))
    found = fit_study(made, seed_noise=0.2, is_noise_measured=False, document_shifts=np.zeros((1, 9)), num_draws=200)
    assert not found.budgets[1].best_params.is_determined
    assert not found.params_exponent.is_determined
    assert any("cannot be told" in note for note in found.notes)


def test_a_best_size_at_the_end_of_those_tried_is_noted() -> None:
    best = TRUTH.best_params(FLOPS[2], flops_per_param_token=K)
    found = fit_study(
        points(best * np.array([0.1, 0.3, 0.8])), seed_noise=0.001, is_noise_measured=False,
        document_shifts=np.zeros((1, 9)), num_draws=50,
    )  # fmt: skip
    assert found.budgets[2].edge == "largest"
    assert any("budget 3: the largest size" in note for note in found.notes)


def test_what_is_missing_leaves_the_rest() -> None:
    made = points(TRUTH.best_params(FLOPS[1], flops_per_param_token=K) * np.array([0.4, 1.0, 2.5]))
    found = fit_study(made[:5], seed_noise=0.001, is_noise_measured=False, num_draws=50)
    assert [fit.budget for fit in found.budgets] == [1]
    assert found.params_exponent is None
    few = fit_study(made[:3], seed_noise=0.001, is_noise_measured=False, num_draws=50)
    assert few.surface is None
    assert any("3 points" in note for note in few.notes)


def test_order_of_the_points_does_not_matter() -> None:
    made = points([2e5, 6e5, 1.8e6], noise=0.002 * np.random.default_rng(0).standard_normal(9))
    shifts = np.random.default_rng(1).standard_normal((20, 9)) * 0.003
    one = fit_study(made, seed_noise=1e-9, is_noise_measured=True, document_shifts=shifts, num_draws=20)
    turned = list(range(9))[::-1]
    other = fit_study(
        [made[i] for i in turned],
        seed_noise=1e-9,
        is_noise_measured=True,
        document_shifts=shifts[:, turned],
        num_draws=20,
    )
    for a, b in zip(one.budgets, other.budgets, strict=True):
        assert a.best_params.value == pytest.approx(b.best_params.value)
        assert a.best_params.low == pytest.approx(b.best_params.low, rel=1e-4)


def test_seed_noise_is_pooled_over_cells() -> None:
    # Variances 0.02 (1 degree of freedom) and 0.01 (2): (0.02 + 0.02) / 3.
    assert fits.pooled_seed_noise([[1.0, 1.2], [2.0, 2.1, 2.2], [7.0]]) == pytest.approx(math.sqrt(0.04 / 3))
    assert fits.pooled_seed_noise([[1.0], [2.0]]) is None


def test_document_shifts_have_the_spread_of_a_ratio_and_are_shared() -> None:
    draw = np.random.default_rng(4)
    num_bytes = draw.integers(200, 4000, 300)
    nats = num_bytes * (1.3 + 0.3 * draw.standard_normal(300))
    both = np.stack([nats, nats + 0.02 * num_bytes])
    shifts = fits.document_shifts(both, num_bytes, num_draws=4000, seed=0)
    # Cochran, Sampling Techniques, equation 6.13: the standard error of a ratio, in bits.
    ratio = nats.sum() / num_bytes.sum()
    expected = math.sqrt(300 / 299 * ((nats - ratio * num_bytes) ** 2).sum()) / num_bytes.sum() / math.log(2)
    assert shifts[:, 0].std() == pytest.approx(expected, rel=0.06)
    # A cell that is worse by a constant on every byte moves exactly with the other.
    assert np.abs(shifts[:, 0] - shifts[:, 1]).max() < 1e-12
