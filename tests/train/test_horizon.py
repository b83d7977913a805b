"""Ends and curves of runs, with a clock made by hand."""

from __future__ import annotations

import pytest

from firstlight.train.horizon import ClockHorizon, Curve, StepHorizon

CURVE = Curve(
    warmup_frac=0.1, warmdown_frac=0.5, final_lr_frac=0.0, momentum_start=0.85, momentum_end=0.95, weight_decay=0.1,
    grad_clip=1.0,
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_step_horizon_follows_the_seeds_trapezoid():
    horizon = StepHorizon(100, CURVE)
    # Warm-up (it + 1) / 10, flat, then down from step 50 on: (100 - it) / 50.
    assert horizon.hyper(0).lr_multiplier == pytest.approx(0.1)
    assert horizon.hyper(9).lr_multiplier == pytest.approx(1.0)
    assert horizon.hyper(50).lr_multiplier == pytest.approx(1.0)
    assert horizon.hyper(75).lr_multiplier == pytest.approx(0.5)
    assert horizon.hyper(99).lr_multiplier == pytest.approx(0.02)


def test_multiplier_ends_low_and_starts_high_never_the_other_way():
    horizon = StepHorizon(1000, CURVE)
    assert horizon.hyper(999).lr_multiplier < 0.01
    assert horizon.hyper(200).lr_multiplier == 1.0


def test_step_horizon_is_done_at_its_last_step_not_before():
    horizon = StepHorizon(10, CURVE)
    assert [horizon.is_done(step) for step in (0, 9, 10, 11)] == [False, False, True, True]


def test_momentum_rises_in_the_first_tenth():
    horizon = StepHorizon(100, CURVE)
    assert horizon.hyper(0).momentum == pytest.approx(0.85)
    assert horizon.hyper(5).momentum == pytest.approx(0.90)
    assert horizon.hyper(50).momentum == pytest.approx(0.95)


def test_rows_are_in_quarters_then_in_halves_then_whole_by_steps_and_by_the_clock():
    curve = Curve(0.1, 0.5, 0.05, 0.85, 0.95, 0.0, 1.0, short_rows_frac=0.6)
    assert [curve.hyper(t, 10).row_parts for t in range(10)] == [4, 4, 4, 2, 2, 2, 1, 1, 1, 1]
    assert [curve.hyper(t, 100.0).row_parts for t in (0.0, 29.9, 30.0, 59.9, 60.0, 100.0)] == [4, 4, 2, 2, 1, 1]
    plain = Curve(0.1, 0.5, 0.05, 0.85, 0.95, 0.0, 1.0)
    assert plain.hyper(0, 10).row_parts == 1


def test_clock_horizon_gives_the_same_curve_in_seconds():
    clock = Clock()
    horizon = ClockHorizon(100.0, CURVE, clock=clock)
    horizon.hyper(0)
    clock.now_s += 75.0
    assert horizon.hyper(7).lr_multiplier == pytest.approx(0.5)
    assert horizon.progress(7) == pytest.approx(0.75)
    assert horizon.eta_s(7, 1.0) == pytest.approx(25.0)


def test_clock_starts_with_the_first_update_not_with_the_preparation():
    clock = Clock()
    horizon = ClockHorizon(100.0, CURVE, clock=clock)
    clock.now_s += 50.0
    assert horizon.used_s() == 0.0
    assert not horizon.is_done(0)
    horizon.hyper(0)
    assert horizon.used_s() == 0.0


def test_clock_horizon_ends_within_half_a_step_of_its_time():
    for step_s in (0.7, 3.0, 9.0):
        clock = Clock()
        horizon = ClockHorizon(100.0, CURVE, clock=clock)
        step = 0
        while not horizon.is_done(step):
            horizon.hyper(step)
            clock.now_s += step_s
            step += 1
        assert abs(clock.now_s - 200.0) <= step_s / 2 + 1e-9, step_s


def test_a_machine_that_slows_down_still_gets_the_whole_warm_down():
    clock = Clock()
    horizon = ClockHorizon(100.0, CURVE, clock=clock)
    step, last = 0, 1.0
    while not horizon.is_done(step):
        last = horizon.hyper(step).lr_multiplier
        clock.now_s += 0.1 if clock.now_s < 150 else 2.0
        step += 1
    assert last < 0.06


def test_resumed_clock_counts_the_time_that_was_used():
    clock = Clock()
    horizon = ClockHorizon(100.0, CURVE, used_s=60.0, clock=clock)
    horizon.hyper(0)
    clock.now_s += 41.0
    assert horizon.is_done(5)


def test_ranks_agree_on_one_time():
    clock = Clock()
    horizon = ClockHorizon(100.0, CURVE, clock=clock, agree=lambda used_s: 75.0)
    assert horizon.hyper(3).lr_multiplier == pytest.approx(0.5)
