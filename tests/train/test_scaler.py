"""The scale of float16 losses: when it moves, and that it survives a restart."""

from __future__ import annotations

import pytest

from firstlight.errors import CheckpointError
from firstlight.train.scaler import LossScaler


def test_overflow_halves_and_a_long_good_time_doubles():
    scaler = LossScaler(scale=8.0, growth_interval=3)
    scaler.update(overflowed=True)
    assert scaler.scale == 4.0
    for expected in (4.0, 4.0, 8.0, 8.0, 8.0, 16.0):
        scaler.update(overflowed=False)
        assert scaler.scale == expected


def test_an_overflow_starts_the_good_time_anew():
    scaler = LossScaler(scale=8.0, growth_interval=3)
    for overflowed in (False, False, True, False, False):
        scaler.update(overflowed=overflowed)
    assert scaler.scale == 4.0


def test_the_scale_never_reaches_zero():
    scaler = LossScaler(scale=1.0, smallest=2.0**-3)
    for _ in range(100):
        scaler.update(overflowed=True)
    assert scaler.scale == 2.0**-3


def test_scale_and_growth_counter_survive_a_restart():
    straight = LossScaler(growth_interval=5)
    for i in range(8):
        straight.update(overflowed=i == 2)
    resumed = LossScaler(growth_interval=5)
    resumed.load_state(straight.state())
    for _ in range(7):
        straight.update(overflowed=False)
        resumed.update(overflowed=False)
        assert resumed.state() == straight.state()


def test_a_foreign_state_is_refused_by_its_keys():
    with pytest.raises(CheckpointError, match="growth_factor"):
        LossScaler().load_state({"scale": 1.0, "growth_factor": 2.0})
