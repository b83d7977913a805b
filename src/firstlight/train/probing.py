"""Measurements on the way, which may fail, run out of memory or take for ever, and never harm the run.

**Time.** Each probe has a budget of seconds for one call (`Budget`). It is asked to end by ``is_over``, which the probe looks at
between its batches; what it has by then is its result, and the probe says of how much. One that does not look is ended by
force after twice its budget where there is one process. With several, leaving a collective would keep the others waiting in
it: there the watchdog ends a run that makes no progress, and it goes on from its last checkpoint.

**Errors.** What a probe raises becomes an event of the metrics, on all ranks together, and training goes on as if the probe had
not been: modes, gradients and random state are put back. After `MOST_FAILURES` in a row a probe is switched off for the rest of
the launch. One in which the process itself has ended so many times at the same step (killed by the system for its memory, or by
the watchdog) is left out there, so that a run which is resumed comes past it. A probe whose ranks meet in collectives must itself see that none waits for one that has failed, as
`firstlight.eval.rounds` does for ours.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from firstlight.model.sharding import drop_pass
from firstlight.runtime.context import Runtime
from firstlight.runtime.metrics import strict_json
from firstlight.train.state import TrainState, preserved_rng

MOST_FAILURES = 3
"""Failures in a row after which a probe is switched off."""

BY_FORCE = 2.0
"""Budgets after which a probe that has not ended is made to."""

INSIST_EVERY_S = 10.0
"""Seconds between two attempts to end a probe by force."""

ON_ANOTHER = "on another process"
"""Words of an error that tells of another rank's."""


@dataclass(frozen=True)
class Budget:
    """Seconds that one call of a probe may take: ``given_s`` (0: no limit), else a share of the training so far, at least
    ``floor_s``. The floor has room for a compilation."""

    given_s: float | None = None
    floor_s: float = 120.0
    share: float = 0.1

    def seconds(self, train_s: float) -> float:
        """Seconds for a call after ``train_s`` seconds of training.

        >>> Budget().seconds(600), Budget().seconds(7200), Budget(30).seconds(7200), Budget(0).seconds(7200)
        (120.0, 720.0, 30, inf)
        """
        if self.given_s is None:
            return max(self.floor_s, self.share * train_s)
        return self.given_s or math.inf


class Probe(Protocol):
    """Something measured on the way, without gradients. ``measure`` returns a row for the metrics of kind ``name``.

    A ``val_bpb`` in the row decides which checkpoint is the best, so a score of fewer documents than usual has another name.
    is_over: true where the budget is spent; the answer of this rank alone.
    """

    @property
    def name(self) -> str: ...
    @property
    def budget(self) -> Budget: ...
    def due(self, step: int, is_last: bool) -> bool: ...
    def measure(self, model: Any, step: int, *, is_over: Callable[[], bool]) -> Mapping[str, Any]: ...


class ProbeSink(Protocol):
    """The part of the trainer's sink that is used here."""

    def write(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None: ...
    def warn(self, text: str) -> None: ...


class OverBudget(BaseException):
    """Raised inside a probe that does not end; no Exception, so that the probe does not take it for its own."""


class Probing:
    """The probes of a run. All ranks make the same calls."""

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        runtime: Runtime,
        sink: ProbeSink,
        where_saved: Callable[[], str],
        beat: Callable[[str], None] = lambda phase: None,
        begun_path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """where_saved: words on where the run can go on from. beat: see `Watchdog.beat`. begun_path: file that says, while a
        probe runs and after a process has ended in one, which it is; written by rank 0."""
        self.probes = tuple(probes)
        self._runtime, self._sink, self._where_saved = runtime, sink, where_saved
        self._beat, self._clock = beat, clock
        self._num_failures = [0] * len(self.probes)
        self._begun = _Begun(begun_path if runtime.is_main else None)

    def run(
        self, model: Any, state: TrainState, *, is_last: bool, is_saved: bool, collect: Callable[[], None]
    ) -> TrainState:
        """Run the probes that are due; the state, with its best score where this step has a checkpoint (``is_saved``).

        collect: called after, to collect garbage. A signal's Dropped passes.
        """
        due = [
            (index, probe)
            for index, probe in enumerate(self.probes)
            if self._num_failures[index] < MOST_FAILURES and probe.due(state.step, is_last)
        ]
        for index, probe in due:
            values = self._measure(index, probe, model, state, collect)
            if values is not None and is_saved:
                state = state.scored(values.get("val_bpb"))
        if due:
            collect()
        return state

    def _measure(
        self, index: int, probe: Probe, model: Any, state: TrainState, collect: Callable[[], None]
    ) -> Mapping[str, Any] | None:
        """The probe's row, written; None where it failed on any rank."""
        self._beat(f"the probe {probe.name} at step {state.step}")
        key = f"{probe.name} at step {state.step}"
        num_ended = int(self._runtime.control.broadcast_text(str(self._begun.count(key))))
        if num_ended >= MOST_FAILURES:
            what = f"the probe {key} is left out: the process has ended in it {num_ended} times"
            self._sink.warn(what)
            self._sink.write("event", state.step, {"what": what})
            return None
        with self._begun.noted(key):
            return self._try(index, probe, model, state, collect)

    def _try(
        self, index: int, probe: Probe, model: Any, state: TrainState, collect: Callable[[], None]
    ) -> Mapping[str, Any] | None:
        budget_s = probe.budget.seconds(state.elapsed_s)
        ends_s = self._clock() + budget_s
        values: Mapping[str, Any] = {}
        problem = trace = ""
        try:
            with _untouched(model, self._runtime), _ended_by_force(BY_FORCE * budget_s, self._runtime):
                values = _measure(probe, model, state.step, lambda: self._clock() >= ends_s)
            # A row that cannot be written costs the probe, here, and not the run, below.
            strict_json(dict(values))
        except OverBudget:
            problem = f"it was ended by force after {BY_FORCE * budget_s:,g} s, {BY_FORCE:g} times its budget"
            trace = traceback.format_exc()
        except Exception as error:
            problem, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        problem = self._agreed(problem)
        if not problem:
            self._num_failures[index] = 0
            self._sink.write(probe.name, state.step, values)
            return values
        # A run of days must not be lost to a score: the checkpoint is on disk, the failure in the record.
        self._num_failures[index] += 1
        what = f"the probe {probe.name} failed at step {state.step}: {problem}"
        self._sink.warn(f"{what}; the run goes on, {self._where_saved()}")
        self._sink.write("event", state.step, {"what": what, "traceback": trace})
        if self._num_failures[index] == MOST_FAILURES:
            off = f"the probe {probe.name} is switched off: it has failed {MOST_FAILURES} times in a row"
            self._sink.warn(f"{off}; --resume tries it again")
            self._sink.write("event", state.step, {"what": off})
        drop_pass(model)
        # It may have run out of memory; what its frames held must not be missing in the next step.
        collect()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _agreed(self, problem: str) -> str:
        """What went wrong on any rank, the same on all: that of the rank where it began."""
        if self._runtime.world_size == 1:
            return problem
        problems = self._runtime.control.gather_texts(problem)
        found = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
        return min(found, key=lambda text: ON_ANOTHER in text, default="")


class _Begun:
    """How many times each probe was begun and not ended. None for the path: nothing is noted."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._counts: dict[str, int] = {}
        # A file that cannot be read says as little as none.
        with suppress(OSError, ValueError, AttributeError, TypeError):
            if path is not None and path.exists():
                self._counts = {str(key): int(count) for key, count in json.loads(path.read_text()).items()}

    def count(self, key: str) -> int:
        return self._counts.get(key, 0)

    @contextmanager
    def noted(self, key: str) -> Iterator[None]:
        self._counts[key] = self.count(key) + 1
        self._write()
        try:
            yield
        finally:
            del self._counts[key]
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        # A full disk must not end what is only to guard against an end.
        with suppress(OSError):
            if self._counts:
                self._path.write_text(json.dumps(self._counts))
            else:
                self._path.unlink(missing_ok=True)


@contextmanager
def _untouched(model: Any, runtime: Runtime) -> Iterator[None]:
    """No gradients and eval mode inside; modes, gradients and random states as they were, after."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        # Taken off, so that a backward pass inside cannot add to them.
        for parameter, _ in grads:
            parameter.grad = None
        model.eval()
        with torch.no_grad(), preserved_rng(runtime.device):
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
        for parameter, grad in grads:
            parameter.grad = grad


def _measure(probe: Probe, model: Any, step: int, is_over: Callable[[], bool]) -> Mapping[str, Any]:
    """`Probe.measure` in a frame that the forced end can find."""
    return probe.measure(model, step, is_over=is_over)


def _is_in_measure(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _measure.__code__:
        frame = frame.f_back
    return frame is not None


@contextmanager
def _ended_by_force(seconds: float, runtime: Runtime) -> Iterator[None]:
    """OverBudget is raised inside after ``seconds``. Not with several processes, and not outside the main thread.

    By SIGURG, which wakes a sleeping main thread too, and does nothing where it comes too late: it is ignored unless somebody
    listens. Again and again, since Python may pass one over (what is raised in a destructor is dropped). Only where the
    probe itself runs (`_measure`): raised on the way out of it, it would keep the listener from being put back.
    """
    main = threading.main_thread()
    if math.isinf(seconds) or runtime.world_size > 1 or threading.current_thread() is not main:
        yield
        return
    is_inside = True

    def end(number: int, frame: FrameType | None) -> None:
        if is_inside and _is_in_measure(frame):
            raise OverBudget

    before = signal.signal(signal.SIGURG, end)
    left = threading.Event()

    def insist() -> None:
        after_s = seconds
        while not left.wait(after_s):
            signal.pthread_kill(main.ident or 0, signal.SIGURG)
            after_s = INSIST_EVERY_S

    threading.Thread(target=insist, name="firstlight-probe-budget", daemon=True).start()
    try:
        yield
    finally:
        is_inside = False
        left.set()
        signal.signal(signal.SIGURG, before if before is not None else signal.SIG_DFL)
