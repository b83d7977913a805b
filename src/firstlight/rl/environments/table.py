"""Environments by name. A new one is a small file in this folder and a line in the table; see ``base.py`` and docs/rl.md."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from firstlight.rl.environments.base import Environment

TABLE = {
    "arithmetic": "firstlight.rl.environments.arithmetic:open_arithmetic",
    "spelling": "firstlight.rl.environments.builtin:open_spelling",
    "counting": "firstlight.rl.environments.builtin:open_counting",
    "choice": "firstlight.rl.environments.builtin:open_choice",
    "gsm8k": "firstlight.rl.environments.gsm8k:open_gsm8k",
    "code": "firstlight.rl.environments.code:open_code",
}
"""Name of an environment -> ``module:function`` that opens it (an `OpenEnvironment`)."""


def open_environment(name: str, *, cache_dir: Path, format_reward: float = 0.0) -> Environment:
    """The environment of a name of the table, or ``NAME:PLACE`` where it reads a folder or a file.

    format_reward: what a wrong answer in the right form is worth, 0 to less than 1. See ``format_reward.py``.
    Raises ConfigError for a name that is not known, and what the environment raises.
    """
    from importlib import import_module

    from firstlight.errors import ConfigError
    from firstlight.rl.environments.format_reward import WithFormatReward, check_format_reward

    check_format_reward(format_reward)
    kind, _, place = name.partition(":")
    if kind not in TABLE:
        close = difflib.get_close_matches(kind.lower(), TABLE, n=1)
        raise ConfigError(
            f"the environment {name!r} is not known",
            hint=(f"did you mean {close[0]}? " if close else "") + f"One of {', '.join(TABLE)}",
        )
    module, _, function = TABLE[kind].partition(":")
    environment = getattr(import_module(module), function)(place, cache_dir=cache_dir)
    return WithFormatReward(environment, format_reward) if format_reward else environment
