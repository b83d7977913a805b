"""Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556): at each budget a parabola of the loss over ln N; its lowest point
is the best size for that budget.

Everything is done for S draws at once: a bootstrap is one call. Where a draw has no lowest point (the parabola opens
downward) the size is NaN; where it lies far outside the sizes that were tried it is infinite on that side, because a
parabola says nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FARTHEST_FACTOR = 2.0
"""A lowest point outside the sizes tried by more than this factor counts as unknown on that side."""


@dataclass(frozen=True)
class Minima:
    """Lowest points of S draws at one budget: ln N (NaN, or infinite, where there is none in reach) and the loss there.

    coefficients (S, 3): of 1, z, z^2 with z = ln N - centre.
    """

    log_params: np.ndarray
    losses: np.ndarray
    coefficients: np.ndarray
    centre: float


def fit_minima(num_params: np.ndarray, losses_SP: np.ndarray) -> Minima:
    """Least-squares parabolas through the points of one budget. Raises ValueError for fewer than three sizes."""
    x = np.log(np.asarray(num_params, dtype=np.float64))
    if len(np.unique(x)) < 3:
        raise ValueError(f"{len(np.unique(x))} sizes fix no parabola")
    centre = float(x.mean())
    powers = np.stack([np.ones_like(x), x - centre, (x - centre) ** 2], axis=1)
    coefficients = np.asarray(losses_SP, dtype=np.float64) @ np.linalg.pinv(powers).T
    c0, c1, c2 = coefficients.T
    opens_up = c2 > 0
    safe = np.where(opens_up, c2, 1.0)
    lowest = np.where(opens_up, centre - c1 / (2 * safe), np.nan)
    at_lowest = np.where(opens_up, c0 - c1**2 / (4 * safe), np.nan)
    reach = np.log(FARTHEST_FACTOR)
    lowest = np.where(lowest < x.min() - reach, -np.inf, np.where(lowest > x.max() + reach, np.inf, lowest))
    at_lowest = np.where(np.isfinite(lowest), at_lowest, np.nan)
    return Minima(lowest, at_lowest, coefficients, centre)


def power_law(log_x: np.ndarray, log_y_SK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exponent and ln of the factor of y = factor * x^exponent through K points, for S draws.

    NaN where a draw lacks a point.
    """
    x = np.asarray(log_x, dtype=np.float64)
    whole = np.asarray(np.isfinite(log_y_SK).all(axis=1))
    y = np.where(np.isfinite(log_y_SK), log_y_SK, 0.0)
    centred = x - x.mean()
    exponent = (y * centred).sum(axis=1) / (centred**2).sum()
    factor = y.mean(axis=1) - exponent * x.mean()
    return np.where(whole, exponent, np.nan), np.where(whole, factor, np.nan)
