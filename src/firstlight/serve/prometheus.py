"""Counters and histograms in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

Used from one thread, the event loop's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of a time."""


class Counter:
    """A number that only grows, one for each combination of its labels' values."""

    kind = "counter"

    def __init__(self, name: str, help_: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help_
        self.labels = tuple(labels)
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *labels: str, amount: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + amount

    def lines(self) -> list[str]:
        return [
            f"{self.name}{_labels(self.labels, values)} {_number(value)}"
            for values, value in sorted(self.values.items())
        ]


class Gauge:
    """A number that is asked for when it is read."""

    kind = "gauge"

    def __init__(self, name: str, help_: str, read: Callable[[], float]) -> None:
        self.name = name
        self.help = help_
        self._read = read

    def lines(self) -> list[str]:
        return [f"{self.name} {_number(self._read())}"]


class Histogram:
    """How many observations were at most each bound, their number and their sum."""

    kind = "histogram"

    def __init__(self, name: str, help_: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name = name
        self.help = help_
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> list[str]:
        found = []
        total = 0
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{self.name}_sum {_number(self._sum)}", f"{self.name}_count {total}"]


def exposition(metrics: Sequence[Counter | Gauge | Histogram]) -> str:
    """The text that a Prometheus server reads.

    >>> counter = Counter("answers_total", "Answers.", ["route"])
    >>> counter.add("/a")
    >>> print(exposition([counter]), end="")
    # HELP answers_total Answers.
    # TYPE answers_total counter
    answers_total{route="/a"} 1
    """
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
    return "\n".join(lines) + "\n"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
