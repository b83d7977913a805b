"""What ends a run early: a signal from a person, or too many updates that had to be refused."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from firstlight.errors import TrainingStopped
from firstlight.runtime.context import Runtime
from firstlight.train.state import TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked for the end. The first is remembered until the step is done; a second one ends at once."""

    def __init__(self, runtime: Runtime, *, report: Callable[[str], None] | None = None) -> None:
        self._runtime = runtime
        self._report = report
        self._signal: int | None = None

    @contextmanager
    def watching(self) -> Iterator[StopRequest]:
        """Take SIGINT and SIGTERM while inside; the handlers from before are put back after."""
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        if self._report is not None:
            name = signal.Signals(number).name
            self._report(f"{name}: finishing this step, then saving; once more to stop at once without a save")

    def agreed(self) -> str | None:
        """Name of the signal that any process was sent, or None; the same answer on every process."""
        number = int(self._runtime.largest(float(self._signal or 0)))
        return signal.Signals(number).name if number else None


def check_skips(state: TrainState, *, limit: int, reason: str | None, last_good: str) -> None:
    """Raise TrainingStopped after ``limit`` refused updates in a row (0: never)."""
    if limit and state.num_skipped_in_a_row >= limit:
        raise TrainingStopped(
            f"{limit} updates in a row were refused, the last at step {state.step - 1}: {reason}",
            hint=f"weights and optimizer are as before them; {last_good}. Lower the rates or --grad-clip, look at the "
            "documents named in metrics.jsonl, or raise --nonfinite-limit",
        )
