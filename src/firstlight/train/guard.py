"""What ends a run early: a signal, another process that is gone, or too many updates that had to be refused.

**A signal** (Ctrl-C, or SIGTERM from a scheduler) is obeyed in every phase, from the launch on:

    StopRequest.at_once     set-up and final score: the work ends at once; there is nothing to save
    StopRequest.watching    training: remembered, agreed on by all ranks at the next step boundary, obeyed after a save
    StopRequest.droppable   an evaluation within training: dropped, and on to the boundary

A second Ctrl-C stops at once in any of them. One process may be sent the signal and the others not; whatever must happen on
all of them together goes through `StopRequest.agreed`, a collective call.

**Another process that is gone** makes the next collective fail on all others: `naming_lost_peers` says so in words.

**One refused update** costs one batch; many in a row mean that the run is broken, and going on would only burn time.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch.distributed as dist

from firstlight.errors import Interrupted, TrainingStopped
from firstlight.runtime.context import Runtime
from firstlight.train.state import TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPPED_BY = "stopped by "

GO_ON = "go on with the same command and --resume"


class Dropped(BaseException):
    """Raised inside work that may be left undone, such as an evaluation, when a stop is asked for."""


class Now(KeyboardInterrupt):
    """Raised by a first signal inside `StopRequest.at_once`, which makes an Interrupted of it."""


class StopRequest:
    """Whether a signal has asked for the end. One for the whole process; a second Ctrl-C ends at once."""

    def __init__(self, runtime: Runtime, *, report: Callable[[str], None] | None = None) -> None:
        """report: told what happens next, from inside the signal's handler."""
        self._runtime = runtime
        self._report = report
        self._signal: int | None = None
        self._may_drop = False
        self._is_at_once = False
        self._process_id = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether this process was sent a signal. No communication: other processes may give another answer."""
        return self._signal is not None

    @contextmanager
    def watching(self) -> Iterator[StopRequest]:
        """Take SIGINT and SIGTERM while inside and remember them; the handlers from before are put back after.

        May be nested, also within `at_once`: inside, the signal is remembered again, and after it at_once goes on.
        Outside the main thread, where Python takes no signals, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        outer, self._is_at_once = self._is_at_once, False
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield self
        finally:
            self._is_at_once = outer
            for number, handler in before.items():
                # None: it was not set from Python and cannot be put back as it was.
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._leave_if_asked()

    @contextmanager
    def at_once(self, where: Callable[[], str]) -> Iterator[None]:
        """Inside, a first signal ends the work at once. To be used within `watching`.

        where: the words after "stopped by SIGTERM", such as "while preparing; nothing was trained yet".

        Raises Interrupted. With several processes the one that was sent the signal leaves word, and the others raise it too
        when they find that it is gone (`naming_lost_peers`).
        """
        outer, self._is_at_once = self._is_at_once, True
        try:
            self._leave_if_asked()
            yield
        except Now as now:
            lost = now.__context__
            while lost is not None and not peer_lost(lost):
                lost = lost.__context__
            if lost is not None:
                # The signal is torchrun's, after another process has ended; it came while this one was about to say so.
                raise lost from None
            self._runtime.leave_word(f"{STOPPED_BY}{self._name()}")
            raise Interrupted(f"stopped by {self._name()} {where()}", hint=GO_ON) from None
        finally:
            self._is_at_once = outer

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Inside, a signal raises Dropped at once instead of waiting for the end of the work, which may take minutes.

        Not where there are several processes: one that leaves a collective would keep the others waiting in it. There
        the work itself looks at `requested` and agrees with the others, as `evaluate_bpb` does.
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
        if os.getpid() != self._process_id:
            # A forked helper has inherited the handler, not the duty: whoever ends it must not wait for a step.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self._signal is not None:
            # A scheduler may send SIGTERM to a whole group, and so twice: only a person's Ctrl-C is impatience.
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._signal = number
        self._leave_if_asked()
        if self._report is not None:
            # The signal may have come in the middle of another print, which Python does not enter twice.
            with suppress(RuntimeError):
                self._report(
                    f"{self._name()}: finishing this step, then saving; Ctrl-C (again) stops at once without a save"
                )
        if self._may_drop:
            self._may_drop = False
            raise Dropped

    def _leave_if_asked(self) -> None:
        if self._is_at_once and self._signal is not None:
            self._is_at_once = False
            raise Now

    def _name(self) -> str:
        return signal.Signals(self._signal or 0).name

    def agreed(self) -> str | None:
        """Name of the signal that any process was sent, or None; the same answer on every process. A collective call."""
        number = int(self._runtime.largest(float(self._signal or 0)))
        return signal.Signals(number).name if number else None


LOST_PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "timed out waiting",
    "timed out after",
    "timeout caused",
    "wait timeout",
    "socket timeout",
    "remote process exited",
    "ncclremoteerror",
    "ncclsystemerror",
    "nccl communicator was aborted",
    "watchdog caught collective operation timeout",
)
"""Parts of what gloo, NCCL and the rendezvous store say where the other end is gone or silent; small letters."""


def peer_lost(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process is gone, or has been silent for too long."""
    if isinstance(error, dist.DistNetworkError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in LOST_PEER_WORDS)


@contextmanager
def naming_lost_peers(runtime: Runtime, last_good: Callable[[], str]) -> Iterator[None]:
    """Turn torch's error about a process that is gone into TrainingStopped with what to do, or into Interrupted where that
    process was told to stop; other errors pass.

    last_good: words on where the run can go on from.
    """
    try:
        yield
    except (RuntimeError, TrainingStopped) as error:
        is_told = isinstance(error, TrainingStopped)
        if runtime.world_size == 1 or not (is_told or peer_lost(error)):
            raise
        word = runtime.left_word()
        if word.startswith(STOPPED_BY):
            stopped = Interrupted(
                f"rank {runtime.rank} of {runtime.world_size}: another process was {word}; {last_good()}", hint=GO_ON
            )
            stopped.ends_at_once = True
            raise stopped from error
        if is_told:
            error.ends_at_once = True
            raise
        # Without the place in the library's source before it, and its guesses after it.
        said = re.sub(r"^\[\S+\] ", "", str(error).strip().splitlines()[0]).split(". ")[0]
        lost = TrainingStopped(
            f"rank {runtime.rank} of {runtime.world_size}: another process has ended, or has not answered for too long "
            f"({said[:160]})",
            hint=f"its own message is further up in the output, or in its log; {last_good()}. {GO_ON.capitalize()}; "
            "torchrun --max-restarts 3 does that by itself",
        )
        lost.ends_at_once = True
        raise lost from error


def check_skips(state: TrainState, *, limit: int, reason: str | None, last_good: str) -> None:
    """Raise TrainingStopped after ``limit`` refused updates in a row (0: never).

    reason: why the last one was refused. last_good: words on where the run can go on from.
    """
    if limit and state.num_skipped_in_a_row >= limit:
        raise TrainingStopped(
            f"{state.num_skipped_in_a_row} updates in a row were refused, the last at step {state.step - 1}: {reason}",
            hint=f"weights and optimizer are as before them; {last_good}. Look at the documents named in "
            "metrics.jsonl; go on with a lower --grad-clip or a higher --nonfinite-limit, or start another run with lower rates",
        )
