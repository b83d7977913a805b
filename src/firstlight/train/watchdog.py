"""A hang ends the run with the stacks of all threads, instead of burning the allocation without a word.

The main thread says what it is about to do (`Watchdog.beat`); a thread of the watchdog looks a few times per deadline whether
that has taken too long. Then it writes the stack of every thread to a file and to standard error, and ends the process.

**Several processes.** Nothing is sent. A rank that sits still makes all others wait for it in their next collective, so each
rank's own watchdog fires, within seconds of the first where the deadlines are the same, and all stacks of all ranks are
written. The rank that hangs has the oldest beat and is the first: the stack that matters most is always written. After its
dump a process lingers, because torchrun ends all processes as soon as one has ended, and the others may want to write theirs.
In most stacks the main thread waits in a collective (``all_reduce``, ``largest``, ``barrier``); the one that does not, hangs.

**A thread that holds the interpreter's lock** lets no other thread run, the watchdog's neither. For that, faulthandler keeps a
timer in C; the watchdog's thread winds it up again at each look, so it runs out only where that thread cannot. It writes the
stacks to standard error and ends the process with exit code 1, which it cannot choose.

**A process that was stopped** (Ctrl-Z and later ``fg``, SIGSTOP, a laptop's lid) has not hung: a look that comes much later
than asked for starts the time of the phase anew. The timer in C cannot do this, so Ctrl-Z (SIGTSTP, which Slurm also sends
before it suspends a job) disarms it first. Nobody can take notice of a plain SIGSTOP: a process that was stopped by one for
longer than its deadline is ended by the timer when it goes on.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from firstlight.errors import TrainingStopped

FIRST_STEP = "first step"
"""Phase with a deadline of its own: it may compile for many minutes."""

LOOKS_PER_DEADLINE = 8
LONGEST_NAP_S = 5.0
STANDARD_ERROR = 2


class Watchdog:
    """Watches one process while inside ``with``; `beat` tells it of progress. Nothing is due before the first beat."""

    def __init__(
        self,
        deadline_s: float,
        *,
        first_deadline_s: float | None,
        rank: int,
        world_size: int,
        stacks_path: Path | None,
        report: Callable[[str], None],
        end: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        linger_s: float = 3.0,
        backup_s: float = 10.0,
    ) -> None:
        """deadline_s: most seconds between two beats; 0 watches nothing. The same on every rank.

        first_deadline_s: the same for the phase `FIRST_STEP`; None is no limit. stacks_path: file for the stacks. report: told what
        happened, from the watchdog's thread, after the stacks are written. linger_s: between the dump and ``end``.
        backup_s: how much later than the watchdog's thread faulthandler's timer ends the process.
        """
        self.deadline_s = deadline_s
        self._first_deadline_s = math.inf if first_deadline_s is None else first_deadline_s
        self._rank, self._world_size = rank, world_size
        self._stacks_path, self._report = stacks_path, report
        self._end, self._clock = end, clock
        self._linger_s, self._backup_s = linger_s, backup_s
        self._nap_s = min(deadline_s / LOOKS_PER_DEADLINE, LONGEST_NAP_S)
        # One assignment of one tuple: the other thread sees all of a beat or nothing of it.
        self._beat: tuple[str, float, float] | None = None
        self._not_before_s = -math.inf
        self._num_pauses = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._takes_suspend = False

    def beat(self, phase: str, *, deadline_s: float | None = None) -> None:
        """Progress was made, and what begins now is ``phase``. Cheap: no lock, and the clock is the only call.

        deadline_s: most seconds until the next beat, where they are not the usual ones (math.inf: no limit). Each rank must
        allow the time for which others may keep it waiting.
        """
        if deadline_s is None:
            deadline_s = self._first_deadline_s if phase == FIRST_STEP else self.deadline_s
        self._beat = (phase, self._clock(), deadline_s)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is due inside; after it the time of the phase starts anew."""
        self._num_pauses += 1
        try:
            yield
        finally:
            self._not_before_s = self._clock()
            self._num_pauses -= 1

    def remaining_s(self) -> float:
        """Seconds until the present phase is overdue; negative where it is, infinite where nothing is due."""
        beat = self._beat
        if beat is None or self._num_pauses:
            return math.inf
        _, started_s, deadline_s = beat
        return max(started_s, self._not_before_s) + deadline_s - self._clock()

    def __enter__(self) -> Self:
        if self.deadline_s > 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
            is_main = threading.current_thread() is threading.main_thread()
            if is_main and hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
                signal.signal(signal.SIGTSTP, self._suspend)
                self._takes_suspend = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._takes_suspend:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        with self.paused():
            faulthandler.cancel_dump_traceback_later()
            os.kill(os.getpid(), signal.SIGSTOP)

    def _watch(self) -> None:
        looked_s = self._clock()
        try:
            while not self._done.wait(self._nap_s):
                before_s, looked_s = looked_s, self._clock()
                if looked_s - before_s > 2 * self._nap_s + 1:
                    self._not_before_s = looked_s
                remaining_s = self.remaining_s()
                if remaining_s < 0:
                    self._alarm()
                    return
                if math.isfinite(remaining_s):
                    faulthandler.dump_traceback_later(remaining_s + self._backup_s, exit=True, file=STANDARD_ERROR)
                else:
                    faulthandler.cancel_dump_traceback_later()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _alarm(self) -> None:
        """Write the stacks, say what happened, end the process. The file comes first: the others may block."""
        message = self._message()
        with ExitStack() as stack:
            file = self._open_stacks(stack)
            # Standard error may be a full pipe, and the console's lock in the hands of the thread that hangs.
            target = file if file is not None else STANDARD_ERROR
            faulthandler.dump_traceback_later(self._linger_s + self._backup_s, exit=True, file=target)
            if file is not None:
                with suppress(OSError):
                    file.write(f"{message}\n\n")
                    file.flush()
                    faulthandler.dump_traceback(file=file, all_threads=True)
            with suppress(OSError):
                os.write(STANDARD_ERROR, f"rank {self._rank}: stacks of all threads\n".encode())
                faulthandler.dump_traceback(file=STANDARD_ERROR, all_threads=True)
            with suppress(Exception):
                self._report(message)
            # The backup stays armed through the lingering and beyond it, should `end` itself not return.
            time.sleep(self._linger_s)
            self._end(TrainingStopped.exit_code)

    def _open_stacks(self, stack: ExitStack) -> IO[str] | None:
        if self._stacks_path is None:
            return None
        try:
            return stack.enter_context(self._stacks_path.open("w", encoding="utf-8"))
        except OSError:
            return None

    def _message(self) -> str:
        assert self._beat is not None
        phase, started_s, deadline_s = self._beat
        elapsed_s = self._clock() - max(started_s, self._not_before_s)
        where = (
            f"in {self._stacks_path} and on standard error" if self._stacks_path is not None else "on standard error"
        )
        who = f"rank {self._rank} of {self._world_size}: " if self._world_size > 1 else ""
        which = (
            "; the rank whose main thread waits in no collective is the one that hangs" if self._world_size > 1 else ""
        )
        return (
            f"{who}no progress for {elapsed_s:.0f} s in the phase '{phase}' (its deadline is {deadline_s:g} s; --hang-timeout "
            f"{self.deadline_s:g}, 0 for none)\n  the stacks of all threads are {where}{which}. The process ends with exit code "
            f"{TrainingStopped.exit_code}; the same command and --resume go on from the last good checkpoint"
        )
