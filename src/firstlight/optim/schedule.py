"""What changes during a run: the values of every update, and the curves that they follow.

The curves are floats in, float out. Time ``t`` may count steps or seconds, as long as the lengths use the same unit, so
one formula serves a run of N steps and a run of M minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from firstlight.errors import ConfigError


@dataclass(frozen=True)
class Hyper:
    """The numbers of one update: the optimizer's, and how rows are cut.

    lr_multiplier: factor on every group's own rate, in [0, 1].
    momentum: Muon's momentum (AdamW's is ``betas[0]``).
    weight_decay: decoupled decay, multiplied by the rate and by each group's own ``weight_decay_scale``.
    grad_clip: largest global gradient norm; larger ones are scaled down to it. 0 is off.
    betas: AdamW's betas for every AdamW group, or None for each group's own.
    row_parts: equal parts that each row of tokens is cut into, each read as a row of its own.
    """

    lr_multiplier: float = 1.0
    momentum: float = 0.95
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    betas: tuple[float, float] | None = None
    row_parts: int = 1


def trapezoid(t: float, *, total: float, warmup: float, warmdown: float, final_frac: float) -> float:
    """Multiplier that rises linearly for ``warmup``, stays at 1, and falls linearly for the last ``warmdown``.

    The rise is (t + 1) / warmup, so the first step is never wasted on a multiplier of 0. The fall starts at
    ``total - warmdown`` and reaches ``final_frac`` at ``t = total``; the last step of N has t = N - 1. Before 0 and after
    ``total`` the curve keeps its end values. Where rise and fall overlap the smaller one counts.

    Raises ConfigError for lengths or a fraction that make no curve.
    """
    _check_curve(total=total, warmup=warmup, warmdown=warmdown, final_frac=final_frac)
    t = min(max(t, 0.0), total)
    rise = min(1.0, (t + 1) / warmup) if warmup > 0 else 1.0
    left = min(1.0, (total - t) / warmdown) if warmdown > 0 else 1.0
    fall = left + (1 - left) * final_frac
    return min(rise, fall)


def cosine(t: float, *, total: float, warmup: float = 0.0, final_frac: float = 0.0) -> float:
    """Multiplier that rises as in `trapezoid` and then follows half a cosine from 1 down to ``final_frac`` at ``total``.

    Raises ConfigError for lengths or a fraction that make no curve.
    """
    _check_curve(total=total, warmup=warmup, warmdown=0.0, final_frac=final_frac)
    t = min(max(t, 0.0), total)
    rise = min(1.0, (t + 1) / warmup) if warmup > 0 else 1.0
    progress = max(0.0, t - warmup) / (total - warmup) if total > warmup else 0.0
    fall = final_frac + (1 - final_frac) * 0.5 * (1 + math.cos(math.pi * progress))
    return min(rise, fall)


def ramp(t: float, *, start: float, end: float, duration: float) -> float:
    """Value that goes linearly from ``start`` at 0 to ``end`` at ``duration``, constant before and after."""
    if duration <= 0:
        return end
    progress = min(max(t / duration, 0.0), 1.0)
    return start + (end - start) * progress


def row_parts(t: float, *, total: float, short_frac: float) -> int:
    """4 in the first half of the first ``short_frac`` of a run, 2 in its second half, then 1: short contexts first
    (Press et al. 2021, Shortformer, arXiv 2012.15832).

    >>> [row_parts(t, total=8, short_frac=0.5) for t in range(8)]
    [4, 4, 2, 2, 1, 1, 1, 1]
    """
    short = short_frac * total
    return 4 if t < short / 2 else 2 if t < short else 1


def _check_curve(*, total: float, warmup: float, warmdown: float, final_frac: float) -> None:
    if not (total > 0 and math.isfinite(total)):
        raise ConfigError(f"a schedule over a total of {total} is empty", hint="the total must be above 0")
    for name, length in (("warm-up", warmup), ("warm-down", warmdown)):
        if not 0 <= length <= total:
            raise ConfigError(f"{name} of {length} does not fit a total of {total}", hint=f"between 0 and {total}")
    if not 0 <= final_frac <= 1:
        raise ConfigError(f"final fraction {final_frac} of the learning rate", hint="between 0 and 1")
