"""Several sources of rows in fixed proportions: which of them gives each row is decided by the weights and a seed alone.

Rows come in cycles. With weights 2, 1 and 0.5 a cycle has 7 rows: 4 of the first, 2 of the second, 1 of the third, in an
order that the seed and the cycle's number decide. So the proportions are exact in every cycle, and any row's component is
known without looking at the rows before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from firstlight.data.shuffle import mix_seed, seeded_permutation
from firstlight.errors import ConfigError

TEXT = "text"
"""The name that stands for the text of the base run."""

MAX_CYCLE_ROWS = 100_000
FORM = "NAME[:WEIGHT],... with weights above 0, for example builtin-chat:2,my.jsonl,text:0.5"


@dataclass(frozen=True)
class Mixture:
    """Names and weights, in the order in which they were written. A weight is a share of the rows."""

    parts: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str, *, flag: str = "--data") -> Mixture:
        """``"builtin-chat,my.jsonl:2,text:0.5"``: a weight is the number after the last colon, 1 where there is none.

        So for a name that itself ends in a number, the weight is written too: ``hf:owner/name:4:1``.
        Raises ConfigError for an empty or double name, and for a weight that is not above 0.
        """
        parts: list[tuple[str, float]] = []
        for item in text.split(","):
            name, colon, last = item.strip().rpartition(":")
            weight = _number(last) if colon else None
            name = name.strip()
            if weight is None:
                name, weight = item.strip(), 1.0
            if not name:
                raise ConfigError(f"{flag} {text!r}: a name is empty", hint=FORM)
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(f"{flag} {text!r}: the weight {last} of {name} is not above 0", hint=FORM)
            if name in dict(parts):
                raise ConfigError(f"{flag} {text!r}: {name} is named twice", hint="give it one weight: the sum of both")
            parts.append((name, weight))
        Schedule([weight for _, weight in parts], seed=0)
        return cls(tuple(parts))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parts)

    def __str__(self) -> str:
        return ",".join(f"{name}:{weight:g}" for name, weight in self.parts)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class Schedule:
    """Which component gives global row g, and which of that component's rows it is.

    shares: rows of each component in one cycle. cycle_rows: rows of a cycle.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        """weights: above 0. Raises ConfigError where their proportions need a cycle of more than MAX_CYCLE_ROWS rows."""
        assert weights
        assert all(weight > 0 for weight in weights), weights
        # By way of its decimal digits: 0.1 is a tenth, and not the fraction with a power of two that stands for it.
        exact = [Fraction(repr(float(weight))) for weight in weights]
        common = math.lcm(*(each.denominator for each in exact))
        counts = [int(each * common) for each in exact]
        divisor = math.gcd(*counts)
        self.shares = tuple(count // divisor for count in counts)
        self.cycle_rows = sum(self.shares)
        if self.cycle_rows > MAX_CYCLE_ROWS:
            raise ConfigError(
                f"weights {', '.join(f'{weight:g}' for weight in weights)} are exact only over {self.cycle_rows:,} rows",
                hint=f"use rounder ones, that repeat within {MAX_CYCLE_ROWS:,} rows: for example 0.6 and 0.4",
            )
        self._seed = seed
        self._sorted = np.repeat(np.arange(len(self.shares)), self.shares)
        self._cycle = -1
        self._component = self._rank = self._sorted

    def at(self, row: int) -> tuple[int, int]:
        """(component, n): global row ``row`` is that component's n-th row, counted from 0."""
        cycle, place = divmod(row, self.cycle_rows)
        self._enter(cycle)
        component = int(self._component[place])
        return component, cycle * self.shares[component] + int(self._rank[place])

    def row_of(self, component: int, n: int) -> int:
        """The global row that is a component's n-th."""
        cycle, rank = divmod(n, self.shares[component])
        self._enter(cycle)
        place = int(np.flatnonzero(self._component == component)[rank])
        return cycle * self.cycle_rows + place

    def count_before(self, component: int, row: int) -> int:
        """Rows of a component among the first ``row`` global rows."""
        cycle, place = divmod(row, self.cycle_rows)
        self._enter(cycle)
        return cycle * self.shares[component] + int((self._component[:place] == component).sum())

    def _enter(self, cycle: int) -> None:
        if cycle == self._cycle:
            return
        order = seeded_permutation(self.cycle_rows, mix_seed(self._seed, "mixture", cycle))
        self._component = self._sorted[order]
        self._rank = np.empty(self.cycle_rows, dtype=np.int64)
        for component, share in enumerate(self.shares):
            self._rank[self._component == component] = np.arange(share)
        self._cycle = cycle
