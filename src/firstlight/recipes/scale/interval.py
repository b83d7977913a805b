"""A number with the interval that a bootstrap gives it, and the honesty to say where it has none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TAIL = 0.025
"""Part of the draws outside an interval on each side: it holds the middle 95 %."""


@dataclass(frozen=True)
class Interval:
    """A value and the middle 95 % of its bootstrap draws. None for a value that does not exist, or a side without an end."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_determined(self) -> bool:
        return self.value is not None and self.low is not None and self.high is not None

    def describe(self, number: str = ".3g") -> str:
        """In words: ``0.48 (0.41 to 0.55)``, with "not determined" where the data do not fix a side.

        >>> Interval(0.5, 0.4, None).describe(), Interval(None, None, None).describe()
        ('0.5 (0.4 or more; above not determined)', 'not determined')
        """

        def show(value: float) -> str:
            if abs(value) >= 1e7:
                return f"{value:.2e}".replace("e+", "e")
            return f"{value:{number}}" if abs(value) < 1000 else f"{float(f'{value:.3g}'):,.0f}"

        if self.value is None or (self.low is None and self.high is None):
            found = "" if self.value is None else f" (best guess {show(self.value)})"
            return f"not determined{found}"
        if self.high is None:
            return f"{show(self.value)} ({show(self.low or 0.0)} or more; above not determined)"
        if self.low is None:
            return f"{show(self.value)} ({show(self.high)} or less; below not determined)"
        return f"{show(self.value)} ({show(self.low)} to {show(self.high)})"


def interval_of(value: float, draws: np.ndarray) -> Interval:
    """The interval of a value from its draws, where a draw may be infinite (beyond what was tried) or NaN (none exists).

    A NaN counts against both ends: it may have been anything. So an end of the interval is there only where more than
    97.5 % of the draws have something to say about that side.
    """
    draws = np.asarray(draws, dtype=np.float64)
    low = np.quantile(np.where(np.isnan(draws), -np.inf, draws), TAIL, method="inverted_cdf")
    high = np.quantile(np.where(np.isnan(draws), np.inf, draws), 1 - TAIL, method="inverted_cdf")
    return Interval(
        float(value) if math.isfinite(value) else None,
        float(low) if math.isfinite(low) else None,
        float(high) if math.isfinite(high) else None,
    )
