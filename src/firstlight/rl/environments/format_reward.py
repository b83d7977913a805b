"""A small reward for the form of an answer, around any environment.

It helps a model that never gets the form right: then no answer is right either, all rewards are equal, and nothing can be
learnt. It is off by default, because a model may also learn that the form is all that is paid for.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.errors import ConfigError
from firstlight.rl.environments.base import SOLVED, Environment, Problem, Split
from firstlight.tokens.conversation import Part


def check_format_reward(value: float) -> None:
    """Raise ConfigError for a reward that would make a form worth as much as a right answer."""
    if not 0 <= value < SOLVED:
        raise ConfigError(
            f"a format reward of {value:g} is not possible",
            hint=f"0 is off, 0.1 is usual; a right answer has {SOLVED:g}",
        )


@dataclass(frozen=True)
class WithFormatReward:
    """Pays at least ``value`` for an answer in the right form; everything else is the environment's own."""

    environment: Environment
    value: float

    @property
    def name(self) -> str:
        return self.environment.name

    @property
    def uses_python(self) -> bool:
        return self.environment.uses_python

    def num_problems(self, split: Split) -> int:
        return self.environment.num_problems(split)

    def problem(self, split: Split, index: int) -> Problem:
        return self.environment.problem(split, index)

    def reward(self, problem: Problem, text: str, parts: tuple[Part, ...]) -> float | None:
        own = self.environment.reward(problem, text, parts)
        if own is None:
            return None
        # NaN stays: max() would give one of the two, depending on their order.
        return own if own != own or not self.has_format(problem, text) else max(own, self.value)

    def has_format(self, problem: Problem, text: str) -> bool:
        return self.environment.has_format(problem, text)
