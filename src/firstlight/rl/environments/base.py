"""What an environment is: problems to ask, and a reward for an answer.

A new one is a small file beside this one, with a function ``open_NAME(place, *, cache_dir)`` that gives an object with the
attributes below, and one line in ``environments/table.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from firstlight.tokens.conversation import Message, Part

Split = Literal["train", "test"]

SPLITS: tuple[Split, ...] = ("train", "test")

SOLVED = 1.0
"""The reward of a right answer. An environment gives no more than this; what reaches it counts as right in pass@k."""


@dataclass(frozen=True)
class Problem:
    """messages: a conversation that ends with the user. answer: for people, and for rewards that compare with it.

    source: names the problem, for logs. extra: whatever else the environment's reward needs.
    """

    messages: tuple[Message, ...]
    answer: str
    source: str
    extra: Any = field(default=None, compare=False)


class Environment(Protocol):
    """Problems by number, the same at each opening, and rewards that depend on nothing but their arguments.

    uses_python: the model may call the Python tool while it answers.
    reward: of a finished answer, usually from 0 to `SOLVED`. ``text`` is what the answer says: its text parts without calls
    and without the tool's output; ``parts`` has them all. None, NaN or an error: this sample has no reward.
    has_format: whether an answer has the form that was asked for, right or wrong.
    """

    @property
    def name(self) -> str: ...
    @property
    def uses_python(self) -> bool: ...
    def num_problems(self, split: Split) -> int: ...
    def problem(self, split: Split, index: int) -> Problem: ...
    def reward(self, problem: Problem, text: str, parts: tuple[Part, ...]) -> float | None: ...
    def has_format(self, problem: Problem, text: str) -> bool: ...


class OpenEnvironment(Protocol):
    """What the table holds. ``place`` is what stands after the colon of a name, or empty."""

    def __call__(self, place: str, *, cache_dir: Path) -> Environment: ...


def is_solved(reward: float | None) -> bool:
    """Whether a reward is that of a right answer.

    >>> is_solved(1.0), is_solved(0.1), is_solved(None)
    (True, False, False)
    """
    return reward is not None and reward >= SOLVED - 1e-9
