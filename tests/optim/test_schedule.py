"""The curves: ends, continuity, range, and the seed's own formula as oracle."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import ConfigError
from firstlight.optim.schedule import Hyper, cosine, ramp, trapezoid


def test_trapezoid_equals_the_seeds_formula_at_every_step():
    num_iterations, warmup_iters, warmdown_iters, final_lr_frac = 1000, 50, 200, 0.1

    def seed_multiplier(it):
        if it < warmup_iters:
            return (it + 1) / warmup_iters
        if it <= num_iterations - warmdown_iters:
            return 1.0
        progress = (num_iterations - it) / warmdown_iters
        return progress * 1.0 + (1 - progress) * final_lr_frac

    for it in range(num_iterations + 1):
        ours = trapezoid(it, total=1000, warmup=50, warmdown=200, final_frac=0.1)
        assert ours == pytest.approx(seed_multiplier(it), abs=1e-12), it


def test_boundary_steps_by_hand():
    def curve(t):
        return trapezoid(t, total=100, warmup=10, warmdown=20, final_frac=0.0)

    assert curve(0) == pytest.approx(0.1)
    assert curve(8) == pytest.approx(0.9)
    assert curve(9) == 1.0
    assert curve(80) == 1.0
    assert curve(90) == pytest.approx(0.5)
    assert curve(99) == pytest.approx(0.05)
    assert curve(100) == 0.0


def test_multiplier_falls_towards_the_end_and_ends_at_the_final_fraction():
    after_warmup = [trapezoid(t, total=100, warmup=5, warmdown=60, final_frac=0.05) for t in range(5, 101)]
    assert all(a >= b for a, b in pairwise(after_warmup))
    assert after_warmup[-1] == pytest.approx(0.05)


def test_counting_beyond_the_end_never_leaves_the_range():
    # 128 micro-batches counted as 128 steps of a run of 1: an unclamped formula gives -127.
    assert trapezoid(64.5 * 2, total=1, warmup=0, warmdown=1, final_frac=0.0) == 0.0
    assert trapezoid(1e9, total=10, warmup=0, warmdown=5, final_frac=0.3) == pytest.approx(0.3)
    assert trapezoid(-5, total=10, warmup=5, warmdown=5, final_frac=0.0) == pytest.approx(0.2)
    assert cosine(1e9, total=10, final_frac=0.2) == pytest.approx(0.2)


@given(
    total=st.floats(0.5, 1e6),
    warmup_frac=st.floats(0, 1),
    warmdown_frac=st.floats(0, 1),
    final=st.floats(0, 1),
    where=st.floats(-1, 2),
)
def test_multiplier_stays_in_range_whatever_the_lengths(total, warmup_frac, warmdown_frac, final, where):
    warmup = warmup_frac * total
    value = trapezoid(where * total, total=total, warmup=warmup, warmdown=warmdown_frac * total, final_frac=final)
    assert 0 <= value <= 1
    assert trapezoid(0, total=total, warmup=warmup, warmdown=0, final_frac=final) > 0
    if where * total >= warmup:
        assert value >= final - 1e-12


def test_curve_in_seconds_has_no_jump():
    times_s = [i * 0.01 for i in range(30001)]
    values = [trapezoid(t, total=300.0, warmup=20.0, warmdown=150.0, final_frac=0.1) for t in times_s]
    steepest = 0.01 / 20.0
    assert max(abs(a - b) for a, b in pairwise(values)) <= steepest * 1.001


def test_overlapping_rise_and_fall_meet_without_a_jump():
    values = [trapezoid(t, total=10, warmup=10, warmdown=10, final_frac=0.0) for t in range(11)]
    assert max(values) < 1
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.11


def test_cosine_by_hand():
    assert cosine(0, total=100) == pytest.approx(1.0)
    assert cosine(50, total=100) == pytest.approx(0.5)
    assert cosine(25, total=100) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert cosine(100, total=100, final_frac=0.1) == pytest.approx(0.1)
    assert cosine(0, total=100, warmup=10) == pytest.approx(0.1)


def test_ramp_by_hand():
    assert ramp(-1, start=0.85, end=0.95, duration=100) == 0.85
    assert ramp(50, start=0.85, end=0.95, duration=100) == pytest.approx(0.90)
    assert ramp(1e6, start=0.85, end=0.95, duration=100) == pytest.approx(0.95)
    assert ramp(0, start=0.85, end=0.95, duration=0) == 0.95


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": 0},
        {"total": -3},
        {"total": math.inf},
        {"warmup": 11},
        {"warmup": -1},
        {"warmdown": 10.5},
        {"final_frac": 1.5},
        {"final_frac": -0.1},
    ],
)
def test_impossible_curves_are_refused_with_the_value_in_the_message(wrong):
    values = {"total": 10, "warmup": 0, "warmdown": 0, "final_frac": 0.0} | wrong
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        trapezoid(0, **values)


def test_hyper_cannot_be_changed_behind_the_optimizers_back():
    with pytest.raises(AttributeError):
        Hyper().momentum = 0.5
