"""Generated arithmetic: sums, differences and products in the words of `builtin-chat`, which need no data.

    What is 12 + 34?        reward 1 for an answer whose last ``####`` is followed by 46, else 0

The model may use the Python tool, as its training showed it. Pairs of operands of the test problems are in no training
problem, here and in `builtin-chat`; the first problems are those of `builtin-chat` itself, the rest go on from there.
"""

from __future__ import annotations

from pathlib import Path

from firstlight.data.chat.builtin_arithmetic import arithmetic
from firstlight.errors import ConfigError
from firstlight.rl.environments.base import Problem, Split
from firstlight.rl.environments.listed import ListedEnvironment, check_not_empty

NUM_PROBLEMS: dict[Split, int] = {"train": 10_000, "test": 1_000}


def open_arithmetic(place: str, *, cache_dir: Path) -> ListedEnvironment:
    """The environment; nothing is read or kept. Raises ConfigError for a place, since it has none."""
    if place:
        raise ConfigError(f"arithmetic:{place}: generated arithmetic reads nothing", hint="--environment arithmetic")
    problems = {split: _problems(split, count) for split, count in NUM_PROBLEMS.items()}
    return check_not_empty(ListedEnvironment("arithmetic", "arithmetic", problems, uses_python=True))


def _problems(split: Split, count: int) -> list[Problem]:
    return [
        Problem(example.messages[:-1], example.answer or "", f"arithmetic-{split}:{i}")
        for i, example in enumerate(arithmetic(split, count))
    ]
