"""Environments by name, and what is said of a name that none has."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.rl.environments.table import TABLE, open_environment


def test_a_name_that_is_not_known_has_a_near_one(tmp_path) -> None:
    with pytest.raises(ConfigError, match="did you mean arithmetic") as caught:
        open_environment("aritmetic", cache_dir=tmp_path)
    assert all(name in str(caught.value) for name in TABLE)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_format_reward_has_limits(tmp_path, value) -> None:
    with pytest.raises(ConfigError, match="is not possible"):
        open_environment("arithmetic", cache_dir=tmp_path, format_reward=value)
