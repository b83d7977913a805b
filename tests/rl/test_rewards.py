"""Whatever an environment returns or raises becomes a finite reward or a reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl.toy import ToyEnvironment

from firstlight.rl.rewards import Reward, safe_format, safe_reward


def reward_of(function) -> Reward:
    environment = ToyEnvironment(function)
    return safe_reward(environment, environment.problem("train", 0), "text", ())


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_any_number_will_do(value) -> None:
    assert reward_of(lambda problem, text: value) == Reward(0.5)


def test_true_and_whole_numbers_are_rewards() -> None:
    assert reward_of(lambda problem, text: True) == Reward(1.0)
    assert reward_of(lambda problem, text: 0) == Reward(0.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "None"), (math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite"), ("much", "ValueError"),
     ([1], "TypeError")],
)  # fmt: skip
def test_what_is_no_finite_number_has_a_reason(value, reason) -> None:
    assert reward_of(lambda problem, text: value) == Reward(None, reason)


def test_an_error_is_a_reason_too() -> None:
    assert reward_of(lambda problem, text: 1 / 0) == Reward(None, "ZeroDivisionError")


def test_a_signal_is_not_swallowed() -> None:
    def interrupted(problem, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward_of(interrupted)


def test_a_form_that_cannot_be_judged_is_none() -> None:
    class Broken(ToyEnvironment):
        def has_format(self, problem, text):
            raise RuntimeError

    environment = Broken()
    assert safe_format(environment, environment.problem("train", 0), "text") is False
    assert safe_format(ToyEnvironment(), environment.problem("train", 0), "text") is True
