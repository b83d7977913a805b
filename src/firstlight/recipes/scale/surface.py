"""Approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556): loss as a surface over size and tokens.

    L(N, D) = E + A / N^alpha + B / D^beta

E is what no model of this kind could get below on this text, A / N^alpha the price of a small model, B / D^beta that of few
tokens. Fitted as there (equation 10): the logarithm of L, in the log-sum-exp form, with Huber's loss, from many starts.
Besiroglu et al. 2024 (arXiv 2404.10102) found that the published fit had stopped before its minimum and that its intervals
were too narrow; so here the losses are summed, each fit runs until it does not move, and the intervals come from a bootstrap
which refits every draw.

Symbols: S draws or starts, P points, parameters theta = (ln A', ln B', ln E, alpha, beta), where A' and B' are at the
geometric mean of N and D: so the five are much less entangled than A and B themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

DELTA = 1e-3
"""Huber's threshold on ln L, as published. Residuals below it count by their square, above it by their size."""

EXPONENT_RANGE = (0.02, 2.5)
E_FLOOR_FRAC = 1e-3
"""E is at least this part of the smallest loss; a fit that ends here says nothing about E but that it may be zero."""

MAX_ITERATIONS = 400
STARTS = tuple(product((0.15, 0.4, 0.9), (0.15, 0.4, 0.9), (0.15, 0.5, 0.85)))
"""Starts of a fit: alpha, beta, and E as a part of the smallest loss."""


@dataclass(frozen=True)
class Surface:
    """One fitted surface. objective: sum of Huber's losses. at_bound: names of parameters that ended at a limit."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float
    at_bound: tuple[str, ...] = ()

    def loss(self, num_params: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
        return self.E + self.A * num_params**-self.alpha + self.B * num_tokens**-self.beta

    @property
    def a(self) -> float:
        """Exponent of the best size: N_opt ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    def best_params(self, flops: float, *, flops_per_param_token: float = 6.0) -> float:
        """N that minimises the loss where C = k * N * D, with k = ``flops_per_param_token`` (equation 4 has k = 6)."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return float(G * (flops / flops_per_param_token) ** self.a)


@dataclass(frozen=True)
class Surfaces:
    """Fits of S draws at once: arrays of S. at_bound (S, 5): which of (A, B, E, alpha, beta) ended at a limit."""

    E: np.ndarray
    A: np.ndarray
    B: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    objective: np.ndarray
    at_bound: np.ndarray

    def one(self, index: int) -> Surface:
        names = ("A", "B", "E", "alpha", "beta")
        stuck = tuple(name for name, is_at in zip(names, self.at_bound[index], strict=True) if is_at)
        return Surface(
            *(float(v[index]) for v in (self.E, self.A, self.B, self.alpha, self.beta, self.objective)), at_bound=stuck
        )


def fit_surface(num_params: np.ndarray, num_tokens: np.ndarray, losses: np.ndarray, *, delta: float = DELTA) -> Surface:
    """The best of the fits from all starts. Needs five points at least, with two values of N and of D; losses above 0.

    Raises ValueError for fewer.
    """
    return fit_surfaces(num_params, num_tokens, np.asarray(losses, dtype=np.float64)[None], delta=delta).one(0)


def fit_surfaces(
    num_params: np.ndarray, num_tokens: np.ndarray, losses_SP: np.ndarray, *, delta: float = DELTA,
    near: Surface | None = None,
) -> Surfaces:  # fmt: skip
    """`fit_surface` of each row of losses (S, P). near: a fit of data like these, taken as a start beside a few others."""
    x, y = np.log(np.asarray(num_params, dtype=np.float64)), np.log(np.asarray(num_tokens, dtype=np.float64))
    losses_SP = np.asarray(losses_SP, dtype=np.float64)
    if len(x) < 5 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        raise ValueError(f"{len(x)} points of {len(np.unique(x))} sizes cannot fix five numbers")
    if not np.all(losses_SP > 0):
        raise ValueError("a loss is not above zero")
    x0, y0 = x.mean(), y.mean()
    target_SP = np.log(losses_SP)
    least_S, most_S = losses_SP.min(axis=1), losses_SP.max(axis=1)
    low_S5 = np.stack([
        np.log(1e-6 * least_S), np.log(1e-6 * least_S), np.log(E_FLOOR_FRAC * least_S),
        np.full_like(least_S, EXPONENT_RANGE[0]), np.full_like(least_S, EXPONENT_RANGE[0]),
    ], axis=1)  # fmt: skip
    high_S5 = np.stack([
        np.log(10 * most_S), np.log(10 * most_S), np.log(least_S),
        np.full_like(least_S, EXPONENT_RANGE[1]), np.full_like(least_S, EXPONENT_RANGE[1]),
    ], axis=1)  # fmt: skip
    starts = STARTS if near is None else (*STARTS[4::9], (0.15, 0.9, 0.5), (0.9, 0.15, 0.5))
    theta_K: list[np.ndarray] = []
    for alpha, beta, frac in starts:
        rest_S = np.maximum(losses_SP.mean(axis=1) - frac * least_S, 1e-3 * least_S)
        theta_K.append(
            np.stack([
                np.log(rest_S / 2), np.log(rest_S / 2), np.log(frac * least_S),
                np.full_like(rest_S, alpha), np.full_like(rest_S, beta),
            ], axis=1)
        )  # fmt: skip
    if near is not None:
        theta = [
            np.log(near.A) - near.alpha * x0, np.log(near.B) - near.beta * y0, np.log(near.E), near.alpha, near.beta,
        ]  # fmt: skip
        theta_K.append(np.clip(np.tile(theta, (len(losses_SP), 1)), low_S5, high_S5))
    num_starts, num_draws = len(theta_K), len(losses_SP)
    tiled = [np.tile(array, (num_starts, 1)) for array in (target_SP, low_S5, high_S5)]
    theta, objective = _minimise(np.concatenate(theta_K), x - x0, y - y0, *tiled, delta=delta)
    objective = objective.reshape(num_starts, num_draws)
    best = objective.argmin(axis=0)
    rows = np.arange(num_draws)
    theta = theta.reshape(num_starts, num_draws, 5)[best, rows]
    a, b, e, alpha, beta = theta.T
    margin = 1e-6 * (high_S5 - low_S5)
    return Surfaces(
        E=np.exp(e), A=np.exp(a + alpha * x0), B=np.exp(b + beta * y0), alpha=alpha, beta=beta,
        objective=objective[best, rows], at_bound=(theta <= low_S5 + margin) | (theta >= high_S5 - margin),
    )  # fmt: skip


def _predict(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln L (S, P) and the three terms' parts of L (S, P, 3), by log-sum-exp."""
    terms = np.stack([
        theta[:, 0:1] - theta[:, 3:4] * x, theta[:, 1:2] - theta[:, 4:5] * y, np.broadcast_to(theta[:, 2:3], (len(theta), len(x))),
    ], axis=2)  # fmt: skip
    top = terms.max(axis=2, keepdims=True)
    parts = np.exp(terms - top)
    total = parts.sum(axis=2, keepdims=True)
    return (top + np.log(total))[:, :, 0], parts / total


def _huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum(axis=1)


def _minimise(
    theta: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    target: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    delta: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt on reweighted residuals, inside a box, for all rows at once -> (theta, objective).

    Huber's loss has the gradient of a square with weight min(1, delta / |residual|); a step is taken only where it lowers
    the loss itself. A parameter at a limit that the gradient pushes outward is held.
    """
    num = len(theta)
    damping = np.full(num, 1e-2)
    predicted, parts = _predict(theta, x, y)
    objective = _huber(predicted - target, delta)
    still = np.zeros(num, dtype=int)
    for _ in range(MAX_ITERATIONS):
        active = np.flatnonzero(still < 8)
        if not len(active):
            break
        t, p = theta[active], parts[active]
        residual = predicted[active] - target[active]
        weight = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        J = np.stack([p[:, :, 0], p[:, :, 1], p[:, :, 2], -p[:, :, 0] * x, -p[:, :, 1] * y], axis=2)
        gradient = np.einsum("sp,spi->si", weight * residual, J)
        held = ((t <= low[active]) & (gradient > 0)) | ((t >= high[active]) & (gradient < 0))
        J = np.where(held[:, None, :], 0.0, J)
        H = np.einsum("spi,sp,spj->sij", J, weight, J)
        diagonal = np.einsum("sii->si", H)
        scale = np.maximum(diagonal, 1e-9 * diagonal.max(axis=1, keepdims=True) + 1e-30)
        H = H + damping[active, None, None] * scale[:, :, None] * np.eye(5)
        step = np.linalg.solve(H, -np.where(held, 0.0, gradient)[:, :, None])[:, :, 0]
        tried = np.clip(t + np.clip(step, -2.0, 2.0), low[active], high[active])
        now, its_parts = _predict(tried, x, y)
        reached = _huber(now - target[active], delta)
        better = reached < objective[active]
        gained = objective[active] - reached
        small = ~better | (gained <= 1e-10 * objective[active] + 1e-22)
        still[active] = np.where(small, still[active] + 1, 0)
        damping[active] = np.clip(np.where(better, damping[active] * 0.3, damping[active] * 6.0), 1e-12, 1e8)
        chosen = active[better]
        theta[chosen], predicted[chosen], parts[chosen] = tried[better], now[better], its_parts[better]
        objective[chosen] = reached[better]
    return theta, objective
