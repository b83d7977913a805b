"""A loss that stands out is refused; noise, good news, a new level and a NaN are not made into a row of refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from firstlight.errors import CheckpointError
from firstlight.train.spike import SpikeGuard


def curve(n: int, *, seed: int = 0, noise: float = 0.03) -> list[float]:
    """A falling loss curve with noise: 6 nats at first, towards 3."""
    rng = np.random.default_rng(seed)
    return [3 + 3 * math.exp(-i / 200) + noise * float(rng.normal()) for i in range(n)]


def feed(guard: SpikeGuard, losses: list[float]) -> list[bool]:
    """Judge and accept one after the other; whether each was refused."""
    refused = []
    for loss in losses:
        refused.append(guard.judge(loss) is not None)
        if not refused[-1]:
            guard.accept(loss)
    return refused


def oracle_limit(losses: list[float], *, factor: float) -> float:
    """The limit of the documented formula, by numpy."""
    values = np.array(losses)
    mad = np.median(np.abs(values - np.median(values)))
    return float(np.median(values) + factor * max(1.4826 * mad, 0.02))


@pytest.mark.parametrize("n", [32, 33, 128, 300])
def test_the_limit_is_median_plus_factor_times_robust_deviation_of_the_last_window(n):
    losses = curve(n, noise=0.1)
    guard = SpikeGuard()
    for loss in losses:
        guard.accept(loss)
    limit = oracle_limit(losses[-128:], factor=6)
    assert guard.judge(limit - 1e-9) is None
    reason = guard.judge(limit + 1e-6)
    assert reason is not None
    assert f"above {limit:.4f}" in reason
    assert f"{limit + 1e-6:.4f} nats" in reason


def test_a_normal_curve_has_no_refusal_and_one_outlier_in_it_exactly_one():
    for seed in range(5):
        losses = curve(600, seed=seed)
        assert not any(feed(SpikeGuard(), losses))
        losses[400] += 2.0
        assert [i for i, refused in enumerate(feed(SpikeGuard(), losses)) if refused] == [400]


def test_the_step_after_a_spike_is_judged_as_if_the_spike_had_not_been():
    losses = curve(400)
    calm, shaken = SpikeGuard(), SpikeGuard()
    feed(calm, losses)
    feed(shaken, [*losses[:300], 50.0, *losses[300:]])
    assert calm.state() == shaken.state()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_costs_no_later_step(bad):
    guard = SpikeGuard()
    feed(guard, curve(200))
    before = guard.state()
    assert guard.judge(bad) == f"loss is {bad}"
    guard.accept(bad)
    assert guard.state() == before
    assert not any(feed(guard, curve(328)[200:]))


def test_a_sudden_fall_is_good_news():
    guard = SpikeGuard()
    feed(guard, [4.0 + 0.01 * (i % 3) for i in range(100)])
    assert feed(guard, [1.0]) == [False]


def test_a_flat_curve_does_not_trip_over_its_noise():
    guard = SpikeGuard()
    feed(guard, [2.0] * 128)
    assert guard.judge(2.11) is None
    assert guard.judge(2.13) is not None


def test_nothing_is_refused_before_there_is_a_history():
    guard = SpikeGuard(min_history=32)
    assert feed(guard, [3.0] * 31 + [30.0]) == [False] * 32
    assert feed(guard, [30.0]) == [True]


def test_a_level_that_has_moved_is_accepted_after_eight_refusals_and_becomes_the_window():
    guard = SpikeGuard()
    feed(guard, [3.0] * 100)
    assert feed(guard, [4.0] * 200) == [True] * 8 + [False] * 192
    # The window is at the new level: a step back to the old one and a spike above the new one are seen as such.
    assert feed(guard, [3.0, 9.0]) == [False, True]


def test_a_new_level_needs_a_history_before_it_can_refuse():
    guard = SpikeGuard()
    feed(guard, [3.0] * 100 + [4.0] * 9)
    assert guard.state() == {"accepted": [4.0] * 9, "refused": []}
    assert feed(guard, [9.0]) == [False]


def test_spikes_with_good_steps_between_are_each_refused():
    guard = SpikeGuard()
    feed(guard, [3.0] * 100)
    assert feed(guard, [9.0, 3.0] * 20) == [True, False] * 20


@pytest.mark.parametrize("stop", [10, 40, 205, 209, 399])
def test_a_resumed_run_decides_bit_for_bit_as_one_that_never_stopped(stop):
    losses = curve(400, noise=0.2)
    losses[200:212] = [loss + 3 for loss in losses[200:212]]
    straight = SpikeGuard()
    expected = feed(straight, losses)
    assert 8 <= sum(expected) < 20
    first = SpikeGuard()
    found = feed(first, losses[:stop])
    second = SpikeGuard()
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert found + feed(second, losses[stop:]) == expected
    assert second.state() == straight.state()


def test_a_shorter_window_takes_the_newest_losses_of_a_longer_one():
    guard = SpikeGuard(window=3)
    guard.load_state({"accepted": [1.0, 2.0, 3.0, 4.0], "refused": []})
    assert guard.state()["accepted"] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "state", [{}, {"accepted": [1.0]}, {"accepted": [math.nan], "refused": []}, {"accepted": "1", "refused": []}]
)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(CheckpointError, match="spike guard state"):
        SpikeGuard().load_state(state)
