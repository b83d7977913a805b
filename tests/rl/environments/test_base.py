"""The seam of an environment: what counts as solved."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.rl.environments import TABLE, open_environment
from firstlight.rl.environments.base import SOLVED, is_solved


def test_what_counts_as_solved() -> None:
    # Ten tests of a tenth each add up to a little less than one.
    assert is_solved(sum([0.1] * 10))
    assert is_solved(SOLVED)
    assert [is_solved(r) for r in (0.99, 0.0, None)] == [False] * 3


def test_a_name_that_is_not_known_has_a_near_one(tmp_path) -> None:
    with pytest.raises(ConfigError, match="did you mean arithmetic") as caught:
        open_environment("aritmetic", cache_dir=tmp_path)
    assert all(name in str(caught.value) for name in TABLE)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_format_reward_has_limits(tmp_path, value) -> None:
    with pytest.raises(ConfigError, match="is not possible"):
        open_environment("arithmetic", cache_dir=tmp_path, format_reward=value)
