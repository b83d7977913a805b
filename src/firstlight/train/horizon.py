"""When a run ends, and where on its schedule it is: by counted steps, or by the clock. Both give the same curve.

A schedule is a function of (t, total). For a run of N steps t is the step; for a run of M minutes t is seconds, so a machine
that slows down half-way still ends on time, with the whole warm-down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from firstlight.optim import schedule
from firstlight.optim.schedule import Hyper


@dataclass(frozen=True)
class Curve:
    """The shape of a schedule, in fractions of the run.

    momentum rises linearly from ``momentum_start`` to ``momentum_end`` in the first ``momentum_ramp_frac`` of the run
    (Muon's running mean of gradients would otherwise start too long for a model that changes fast).
    Rows are cut into parts in the first ``short_rows_frac`` of the run (`schedule.row_parts`).
    """

    warmup_frac: float
    warmdown_frac: float
    final_lr_frac: float
    momentum_start: float
    momentum_end: float
    weight_decay: float
    grad_clip: float
    momentum_ramp_frac: float = 0.1
    short_rows_frac: float = 0.0

    def hyper(self, t: float, total: float) -> Hyper:
        """Hyper-parameters of the update at ``t`` of ``total`` (steps or seconds)."""
        return Hyper(
            lr_multiplier=schedule.trapezoid(
                t,
                total=total,
                warmup=self.warmup_frac * total,
                warmdown=self.warmdown_frac * total,
                final_frac=self.final_lr_frac,
            ),
            momentum=schedule.ramp(
                t, start=self.momentum_start, end=self.momentum_end, duration=self.momentum_ramp_frac * total
            ),
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            row_parts=schedule.row_parts(t, total=total, short_frac=self.short_rows_frac),
        )


@dataclass(frozen=True)
class StepHorizon:
    """A run of ``num_steps`` updates."""

    num_steps: int
    curve: Curve

    def hyper(self, step: int) -> Hyper:
        return self.curve.hyper(step, self.num_steps)

    def is_done(self, step: int) -> bool:
        return step >= self.num_steps

    def used_s(self) -> float:
        """Seconds do not count here."""
        return 0.0

    def progress(self, step: int) -> float:
        return step / self.num_steps

    def eta_s(self, step: int, step_time_s: float) -> float:
        return (self.num_steps - step) * step_time_s


class ClockHorizon:
    """A run that ends ``total_s`` seconds after its start; ``used_s`` of them were spent before it was stopped.

    The clock starts when the first update asks for its hyper-parameters, so preparing does not count here.
    agree: makes one number of what the ranks' clocks say (the largest), so that all ranks use the same rates.
    """

    def __init__(
        self,
        total_s: float,
        curve: Curve,
        *,
        used_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        agree: Callable[[float], float] = float,
    ) -> None:
        self.total_s = total_s
        self._agree = agree
        self.curve = curve
        self._used_before_s = used_s
        self._clock = clock
        self._started_at: float | None = None
        self._last_check: tuple[float, int] | None = None
        self._step_s = 0.0

    def used_s(self) -> float:
        """Seconds of the run that are spent."""
        return self._used_before_s + (self._clock() - self._started_at if self._started_at is not None else 0.0)

    def hyper(self, step: int) -> Hyper:
        if self._started_at is None:
            self._started_at = self._clock()
        return self.curve.hyper(min(self._agree(self.used_s()), self.total_s), self.total_s)

    def is_done(self, step: int) -> bool:
        """True where the next step would end nearer after the time than this one ended before it."""
        now = self._agree(self.used_s())
        if self._last_check is not None and step > self._last_check[1]:
            self._step_s = (now - self._last_check[0]) / (step - self._last_check[1])
        self._last_check = (now, step)
        return now + self._step_s / 2 >= self.total_s

    def progress(self, step: int) -> float:
        return min(1.0, self.used_s() / self.total_s)

    def eta_s(self, step: int, step_time_s: float) -> float:
        return max(0.0, self.total_s - self.used_s())
