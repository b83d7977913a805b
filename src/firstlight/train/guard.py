"""What ends a run early: a signal from a person or a scheduler, or too many updates that had to be refused.

A first signal is obeyed at the end of the step, after a save; a second Ctrl-C stops at once. One refused update costs one
batch; many in a row mean that the run is broken, and going on would only burn time.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from firstlight.errors import TrainingStopped
from firstlight.runtime.context import Runtime
from firstlight.train.state import TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Dropped(BaseException):
    """Raised inside work that may be left undone, such as an evaluation, when a stop is asked for."""


class StopRequest:
    """Whether a signal has asked for the end. It is remembered until the step is done; a second Ctrl-C ends at once."""

    def __init__(self, runtime: Runtime, *, report: Callable[[str], None] | None = None) -> None:
        """report: told what happens next, from inside the signal's handler."""
        self._runtime = runtime
        self._report = report
        self._signal: int | None = None
        self._may_drop = False

    @contextmanager
    def watching(self) -> Iterator[StopRequest]:
        """Take SIGINT and SIGTERM while inside; the handlers from before are put back after.

        Outside the main thread, where Python takes no signals, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # None: it was not set from Python and cannot be put back as it was.
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Inside, a signal raises Dropped at once instead of waiting for the end of the work, which may take minutes.

        Not where there are several processes: one that leaves a collective would keep the others waiting in it.
        """
        allowed = self._runtime.world_size == 1
        if allowed and self._signal is not None:
            raise Dropped
        self._may_drop = allowed
        try:
            yield
        finally:
            self._may_drop = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            # A scheduler may send SIGTERM to a whole group, and so twice: only a person's Ctrl-C is impatience.
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._signal = number
        if self._report is not None:
            name = signal.Signals(number).name
            # The signal may have come in the middle of another print, which Python does not enter twice.
            with suppress(RuntimeError):
                self._report(f"{name}: finishing this step, then saving; Ctrl-C (again) stops at once without a save")
        if self._may_drop:
            self._may_drop = False
            raise Dropped

    def agreed(self) -> str | None:
        """Name of the signal that any process was sent, or None; the same answer on every process. A collective call."""
        number = int(self._runtime.largest(float(self._signal or 0)))
        return signal.Signals(number).name if number else None


def check_skips(state: TrainState, *, limit: int, reason: str | None, last_good: str) -> None:
    """Raise TrainingStopped after ``limit`` refused updates in a row (0: never).

    reason: why the last one was refused. last_good: words on where the run can go on from.
    """
    if limit and state.num_skipped_in_a_row >= limit:
        raise TrainingStopped(
            f"{state.num_skipped_in_a_row} updates in a row were refused, the last at step {state.step - 1}: {reason}",
            hint=f"weights and optimizer are as before them; {last_good}. Lower the rates or --grad-clip, look at the "
            "documents named in metrics.jsonl, or raise --nonfinite-limit",
        )
