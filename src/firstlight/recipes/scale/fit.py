"""What a study's cells say together: the best size and tokens at each budget, their exponents, the loss surface.

Two approaches of Hoffmann et al. 2022 (arXiv 2203.15556) beside each other, since they lean on different assumptions:
a parabola for each budget (2), and one surface for all (3). Error bars are the middle 95 % of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firstlight.recipes.scale.interval import Interval, interval_of
from firstlight.recipes.scale.parabola import fit_minima, power_law
from firstlight.recipes.scale.surface import DELTA, Surface, fit_surface, fit_surfaces

NUM_DRAWS = 1000
ASSUMED_SEED_NOISE = 0.005
"""Standard deviation between seeds in bits per byte where none was measured: below this, differences of single runs of a
few minutes are taken for noise in lab/LOG.md."""
HUBER_EFFICIENT = 1.345
"""Huber's threshold in standard deviations at which the fit keeps 95 % of least squares' efficiency (Huber 1964)."""


@dataclass(frozen=True)
class Point:
    """One cell's outcome, the mean over its seeds. num_seeds: of them. stderr: of the score over documents."""

    budget: int
    flops: float
    num_params: int
    num_tokens: int
    bpb: float
    stderr: float
    num_seeds: int = 1


@dataclass(frozen=True)
class BudgetFit:
    """The parabola of one budget. best_params, best_tokens, best_bpb: at its lowest point. edge: ``smallest`` or ``largest``
    where the best of the cells is at that end of the sizes tried, else empty."""

    budget: int
    flops: float
    best_params: Interval
    best_tokens: Interval
    tokens_per_param: Interval
    best_bpb: Interval
    curve: tuple[float, float, float]
    centre: float
    edge: str


@dataclass(frozen=True)
class SurfaceFit:
    """The surface, and what follows from it. predicted: its loss at each point, in the order of the points.

    ratios: tokens per parameter at the best size of each budget.
    """

    surface: Surface
    E: Interval
    A: Interval
    B: Interval
    alpha: Interval
    beta: Interval
    params_exponent: Interval
    tokens_exponent: Interval
    best_params: tuple[Interval, ...]
    ratios: tuple[Interval, ...]
    predicted: tuple[float, ...]


@dataclass(frozen=True)
class StudyFit:
    """Both fits. A part that the cells do not allow is None or absent, and ``notes`` says why.

    flops_per_param_token: k of C = k * N * D, the geometric mean over the cells (6 without attention).
    seed_noise: bits per byte. is_noise_measured: from this study's own seeds.
    """

    points: tuple[Point, ...]
    budgets: tuple[BudgetFit, ...]
    params_exponent: Interval | None
    tokens_exponent: Interval | None
    surface: SurfaceFit | None
    flops_per_param_token: float
    seed_noise: float
    is_noise_measured: bool
    documents: str
    notes: tuple[str, ...]


def fit_study(
    points: Sequence[Point], *, seed_noise: float, is_noise_measured: bool, document_shifts: np.ndarray | None = None,
    num_draws: int = NUM_DRAWS, seed: int = 0,
) -> StudyFit:  # fmt: skip
    """Fit both approaches to the points of a study.

    seed_noise: standard deviation of one run's score between seeds. document_shifts (any number, points): by how much each
    score moves when the documents are drawn again, the same draw for all cells; where None, each cell moves by itself with
    its standard error. That is too much, since all cells share their documents: wider intervals than needed.
    """
    ordered = sorted(points, key=lambda p: (p.budget, p.num_params))
    draw = np.random.default_rng(seed)
    bpb = np.array([p.bpb for p in points])
    own = seed_noise / np.sqrt([p.num_seeds for p in points])
    shifts = draw.standard_normal((num_draws, len(points))) * own
    if document_shifts is None:
        documents = "each cell's standard error, as if each had documents of its own (too wide: they share them)"
        shifts += draw.standard_normal((num_draws, len(points))) * np.array([p.stderr for p in points])
    else:
        documents = "the validation documents drawn again, the same for all cells"
        shifts += document_shifts[draw.integers(0, len(document_shifts), num_draws)]
    order = [list(points).index(p) for p in ordered]
    bpb, shifts = bpb[order], shifts[:, order]
    params = np.array([p.num_params for p in ordered], dtype=np.float64)
    tokens = np.array([p.num_tokens for p in ordered], dtype=np.float64)
    flops = np.array([p.flops for p in ordered])
    per_param_token = float(np.exp(np.mean(np.log(flops / (params * tokens))))) if len(ordered) else 6.0
    notes: list[str] = []

    groups = {b: [i for i, p in enumerate(ordered) if p.budget == b] for b in sorted({p.budget for p in ordered})}
    budgets: list[BudgetFit] = []
    lowest_SK: list[np.ndarray] = []
    for budget, rows in groups.items():
        if len({ordered[i].num_params for i in rows}) < 3:
            notes.append(f"budget {budget} has {len(rows)} finished sizes: a parabola needs three")
            continue
        fit, lowest = _fit_budget(budget, params[rows], flops[rows], bpb[rows], shifts[:, rows], per_param_token)
        budgets.append(fit)
        lowest_SK.append(lowest)
        if fit.best_params.value is None:
            notes.append(f"budget {budget}: the parabola has no lowest point near the sizes tried")
        elif fit.edge:
            notes.append(
                f"budget {budget}: the {fit.edge} size is the best of those tried, so the best size leans on the parabola "
                f"alone: a {'smaller size, or a larger' if fit.edge == 'smallest' else 'larger size, or a smaller'} budget "
                "would show it"
            )

    params_exponent = tokens_exponent = None
    if len(budgets) >= 2:
        log_C = np.log([fit.flops for fit in budgets])
        exponents, _ = power_law(log_C, np.stack(lowest_SK, axis=1))
        # The first row is the data themselves.
        params_exponent = interval_of(exponents[0], exponents[1:])
        tokens_exponent = interval_of(1 - exponents[0], 1 - exponents[1:])
    elif groups:
        notes.append("exponents need the lowest points of two budgets")

    surface = None
    try:
        surface = _fit_surface(
            ordered,
            params,
            tokens,
            bpb,
            shifts,
            [f.flops for f in budgets],
            per_param_token,
            float(own.mean()) if len(own) else 0.0,
        )
    except ValueError as error:
        notes.append(f"no surface: {error}")
    if surface is not None:
        if len(ordered) <= 6:
            notes.append(f"the surface has five numbers and {len(ordered)} points: it follows them whatever they are")
        open_ones = [n for n in ("E", "alpha", "beta") if not getattr(surface, n).is_determined]
        if open_ones:
            notes.append(
                f"the surface's {' and '.join(open_ones)} cannot be told from {len(ordered)} points of this range: many "
                "surfaces fit them as well"
            )
    return StudyFit(
        points=tuple(ordered), budgets=tuple(budgets), params_exponent=params_exponent, tokens_exponent=tokens_exponent,
        surface=surface, flops_per_param_token=per_param_token, seed_noise=seed_noise, is_noise_measured=is_noise_measured,
        documents=documents, notes=tuple(notes),
    )  # fmt: skip


def _fit_budget(
    budget: int, params: np.ndarray, flops: np.ndarray, bpb: np.ndarray, shifts: np.ndarray, per_param_token: float
) -> tuple[BudgetFit, np.ndarray]:
    """The fit of one budget, and ln N of the lowest points: of the data (first), then of each draw."""
    mean_flops = float(np.exp(np.log(flops).mean()))
    minima = fit_minima(params, np.concatenate([bpb[None], bpb + shifts]))
    lowest = minima.log_params
    log_tokens = np.log(mean_flops / per_param_token) - lowest
    best = int(bpb.argmin())
    edge = "smallest" if params[best] == params.min() else "largest" if params[best] == params.max() else ""

    def interval(logs: np.ndarray) -> Interval:
        with np.errstate(over="ignore"):
            values = np.exp(logs)
        # exp(-inf) is 0: below all that was tried, so that side has no end.
        values = np.where(np.isneginf(logs), -np.inf, values)
        return interval_of(values[0], values[1:])

    curve = tuple(float(c) for c in minima.coefficients[0])
    return BudgetFit(
        budget=budget, flops=mean_flops, best_params=interval(lowest), best_tokens=interval(log_tokens),
        tokens_per_param=interval(log_tokens - lowest), best_bpb=interval_of(minima.losses[0], minima.losses[1:]),
        curve=curve, centre=minima.centre, edge=edge,  # pyrefly: ignore[bad-argument-type]
    ), lowest  # fmt: skip


def _fit_surface(
    points: Sequence[Point], params: np.ndarray, tokens: np.ndarray, bpb: np.ndarray, shifts: np.ndarray,
    budget_flops: Sequence[float], per_param_token: float, noise: float,
) -> SurfaceFit:  # fmt: skip
    # With the published threshold and noise above it, nearly all residuals would count by their size only, and five of
    # nine points would be met exactly whatever the others say.
    delta = max(DELTA, HUBER_EFFICIENT * noise / float(np.mean(bpb))) if len(bpb) else DELTA
    fitted = fit_surface(params, tokens, bpb, delta=delta)
    predicted = fitted.loss(params, tokens)
    draws = fit_surfaces(params, tokens, np.maximum(predicted + shifts, 1e-6), delta=delta, near=fitted)

    def interval(name: str, index: int) -> Interval:
        # A floor of (nearly) zero is a possible answer, unlike any other limit.
        is_answer = (name == "E") & (0.01 * predicted.min() > draws.E)
        values = np.where(draws.at_bound[:, index] & ~is_answer, np.nan, getattr(draws, name))
        return interval_of(getattr(fitted, name), values)

    sums = draws.alpha + draws.beta
    # Where an exponent ends at its limit, one of the terms does nothing and the split of compute is anyone's guess.
    lost = draws.at_bound[:, 3] | draws.at_bound[:, 4]
    exponents = np.where(lost, np.nan, draws.beta / sums)
    log_G = (np.log(draws.alpha * draws.A) - np.log(draws.beta * draws.B)) / sums
    best_params, ratios = [], []
    for flops in budget_flops:
        log_N = np.where(lost, np.nan, log_G + exponents * np.log(flops / per_param_token))
        best = fitted.best_params(flops, flops_per_param_token=per_param_token)
        best_params.append(interval_of(best, _bounded_exp(log_N)))
        log_ratio = np.log(flops / per_param_token) - 2 * log_N
        ratios.append(interval_of(flops / per_param_token / best**2, _bounded_exp(log_ratio)))
    return SurfaceFit(
        surface=fitted, E=interval("E", 2), A=interval("A", 0), B=interval("B", 1), alpha=interval("alpha", 3),
        beta=interval("beta", 4), params_exponent=interval_of(fitted.a, exponents),
        tokens_exponent=interval_of(1 - fitted.a, 1 - exponents), best_params=tuple(best_params), ratios=tuple(ratios),
        predicted=tuple(float(v) for v in predicted),
    )  # fmt: skip


def _bounded_exp(logs: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(logs)


def pooled_seed_noise(scores: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation between seeds, pooled over cells; None where no cell has two seeds.

    >>> round(pooled_seed_noise([[1.0, 1.2], [2.0, 2.2], [3.0]]), 6)
    0.141421
    """
    repeated = [np.asarray(s, dtype=np.float64) for s in scores if len(s) > 1]
    if not repeated:
        return None
    squares = sum(float(((s - s.mean()) ** 2).sum()) for s in repeated)
    return float(np.sqrt(squares / sum(len(s) - 1 for s in repeated)))


def document_shifts(nats_CD: np.ndarray, num_bytes_D: np.ndarray, *, num_draws: int, seed: int) -> np.ndarray:
    """By how much the bits per byte of C cells move when the D documents are drawn again with replacement: (num_draws, C).

    nats_CD: summed loss of each document in each cell. One draw of documents is shared by all cells.
    """
    draw = np.random.default_rng(seed)
    num_documents = len(num_bytes_D)
    counts = draw.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=num_draws)
    drawn = (counts @ nats_CD.T) / (counts @ num_bytes_D)[:, None]
    observed = nats_CD.sum(axis=1) / num_bytes_D.sum()
    return (drawn - observed) / np.log(2)
