"""Problems from a list."""

from __future__ import annotations

import pytest

from firstlight.errors import DataError
from firstlight.rl.environments.base import Problem
from firstlight.rl.environments.listed import ListedEnvironment, check_not_empty
from firstlight.tokens.conversation import Message

SPELL = Problem((Message.of("user", 'Spell the word "cat".'),), "c - a - t", "here:0")


def test_rewards_are_those_of_the_kind() -> None:
    environment = ListedEnvironment("spelling", "spelling", {"train": [SPELL, SPELL], "test": [SPELL]})
    assert (environment.num_problems("train"), environment.num_problems("test")) == (2, 1)
    assert [environment.reward(SPELL, text, ()) for text in ("c - a - t", "c-a-t", "c - a", "cat")] == [1, 1, 0, 0]
    assert [environment.has_format(SPELL, text) for text in ("c - a - t", "d - o", "cat", "")] == [1, 1, 0, 0]


def test_a_split_without_problems_is_refused() -> None:
    with pytest.raises(DataError, match="empty has no test problem"):
        check_not_empty(ListedEnvironment("empty", "choice", {"train": [SPELL], "test": []}))
