"""Claims of errors.py: exit codes as documented, hints on their own line, all problems at once."""

from __future__ import annotations

import pytest

from firstlight.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FirstlightError,
    Interrupted,
    Problems,
    TrainingStopped,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FirstlightError, 1),
        (ConfigError, 2),
        (DataError, 3),
        (CheckpointError, 4),
        (TrainingStopped, 5),
        (Interrupted, 130),
    ],
)
def test_each_error_has_the_documented_exit_code(kind: type[FirstlightError], code: int) -> None:
    assert kind("x").exit_code == code
    assert isinstance(kind("x"), FirstlightError)


def test_the_message_is_what_then_hint_on_a_line_of_its_own() -> None:
    assert str(ConfigError("depth is 0", hint="the smallest is 1")) == "depth is 0\n  the smallest is 1"
    assert str(DataError("no text")) == "no text"


def test_no_problem_raises_nothing() -> None:
    Problems().raise_if_any()


def test_one_problem_is_raised_as_it_is() -> None:
    problems = Problems()
    problems.add("a", hint="b")
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert (caught.value.what, caught.value.hint) == ("a", "b")


def test_many_problems_are_raised_together_each_with_its_hint() -> None:
    problems = Problems()
    problems.add("first", hint="do this")
    problems.add("second")
    assert len(problems) == 2
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == "2 things are wrong:\n  - first\n    do this\n  - second"
