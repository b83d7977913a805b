"""One sample's reward, whatever an environment's code does: a finite number, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firstlight.rl.environments.base import Environment, Problem
from firstlight.tokens.conversation import Part


@dataclass(frozen=True)
class Reward:
    """value: None where the sample has no reward; invalid says why, in few words (``NaN``, ``None``, an error's name)."""

    value: float | None
    invalid: str = ""


def safe_reward(environment: Environment, problem: Problem, text: str, parts: tuple[Part, ...]) -> Reward:
    """The environment's reward for an answer. What is no finite number, and any error, makes the sample one without.

    Such a sample is left out of training and counted: a zero would teach that the answer was bad, which nobody knows.
    """
    try:
        value = environment.reward(problem, text, parts)
        if value is None:
            return Reward(None, "None")
        value = float(value)
    except Exception as error:
        return Reward(None, type(error).__name__)
    if not math.isfinite(value):
        return Reward(None, "NaN" if math.isnan(value) else "infinite")
    return Reward(value)


def safe_format(environment: Environment, problem: Problem, text: str) -> bool:
    """Whether an answer has the environment's form; an environment that cannot say so says no."""
    try:
        return bool(environment.has_format(problem, text))
    except Exception:
        return False
