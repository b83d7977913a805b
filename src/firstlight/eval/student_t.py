"""Quantiles of Student's t distribution, for intervals from few numbers. Degrees of freedom may be fractions (Welch).

The distribution function is an incomplete beta function (Abramowitz and Stegun, 26.7.1), which is a continued fraction
(26.5.8); the quantile is found by Newton's method inside an interval.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL_FROM = 1e7
"""From this many degrees of freedom the normal distribution is the same to eight digits."""


def t_cdf(t: float, df: float) -> float:
    """Probability that a t variable with ``df`` > 0 degrees of freedom (infinity: a normal one) is at most ``t``.

    >>> round(t_cdf(12.706, 1), 4)
    0.975
    """
    _check(df)
    if df >= _NORMAL_FROM:
        return NormalDist().cdf(t)
    tail = 0.5 * _incomplete_beta(df / (df + t * t), df / 2, 0.5)
    return 1 - tail if t > 0 else tail


def t_quantile(prob: float, df: float) -> float:
    """The value below which a t variable lies with probability ``prob``, 0 < prob < 1: the inverse of `t_cdf`.

    >>> round(t_quantile(0.975, 4), 3)
    2.776
    """
    _check(df)
    if not 0 < prob < 1:
        raise ValueError(f"probability {prob} is not between 0 and 1")
    if prob == 0.5:
        return 0.0
    if prob < 0.5:
        return -t_quantile(1 - prob, df)
    if df >= _NORMAL_FROM:
        return NormalDist().inv_cdf(prob)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < prob and high < 1e300:
        low, high = high, 2 * high
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    t = (low + high) / 2
    for _ in range(200):
        over = t_cdf(t, df) - prob
        low, high = (low, t) if over > 0 else (t, high)
        density = math.exp(log_scale - (df + 1) / 2 * math.log1p(t * t / df))
        step = over / density if density > 0 else math.inf
        # Newton's step where it stays between the limits, else half of the way.
        nearer = t - step if low < t - step < high else (low + high) / 2
        if abs(nearer - t) <= 1e-12 * t:
            break
        t = nearer
    return t


def _check(df: float) -> None:
    if not df > 0:
        raise ValueError(f"{df} degrees of freedom: there must be more than 0")


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised: I_x(a, b), 0 <= x <= 1."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        # The fraction converges fast on the other side of the mean.
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)), from its far end: with 60 terms more than enough this side of the mean, unless a is
    huge, where the terms that count are some sqrt(a).
    """
    num_terms = 60 + int(4 * math.sqrt(a))
    value = 1.0
    for i in range(num_terms, 0, -1):
        m = i // 2
        if i % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + d / value
    return value
