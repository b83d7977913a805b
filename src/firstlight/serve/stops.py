"""Stop strings in a text that comes piece by piece: what may be shown already, and where to end."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Holds back what may turn out to be the beginning of a stop string; no part of one is ever given out.

    >>> scanner = StopScanner(["END"])
    >>> [scanner.push(piece) for piece in ("a E", "N", "x", " EN", "D more")]
    ['a ', '', 'ENx', ' ', '']
    >>> scanner.is_stopped
    True
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string is in every text"
        self.is_stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to come before any stop string. After a stop: nothing more."""
        if self.is_stopped:
            return ""
        text = self._held + text
        # The one that is whole first counts, however the text was cut into pieces; of several, the longest.
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, where the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop`` (less than all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
