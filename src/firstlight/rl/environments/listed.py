"""An environment whose problems are a list and whose answers are compared as `builtin-chat` compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firstlight.data.chat import builtin_answers
from firstlight.data.chat.builtin_answers import Kind
from firstlight.errors import DataError
from firstlight.rl.environments.base import SOLVED, Problem, Split
from firstlight.tokens.conversation import Part


@dataclass(frozen=True)
class ListedEnvironment:
    """kind: how a reply is judged, see ``data/chat/builtin_answers.py``. Reward: 1 for a right reply, 0 for any other."""

    name: str
    kind: Kind
    problems: Mapping[Split, Sequence[Problem]]
    uses_python: bool = False

    def num_problems(self, split: Split) -> int:
        return len(self.problems[split])

    def problem(self, split: Split, index: int) -> Problem:
        return self.problems[split][index]

    def reward(self, problem: Problem, text: str, parts: tuple[Part, ...]) -> float:
        return SOLVED if builtin_answers.is_right(self.kind, problem.answer, text) else 0.0

    def has_format(self, problem: Problem, text: str) -> bool:
        return builtin_answers.has_format(self.kind, text)


def check_not_empty(environment: ListedEnvironment, *, hint: str = "") -> ListedEnvironment:
    """The environment. Raises DataError where one of its splits has no problem."""
    for split, problems in environment.problems.items():
        if not problems:
            raise DataError(f"the environment {environment.name} has no {split} problem", hint=hint)
    return environment
