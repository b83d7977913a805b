"""The reward for a form: between nothing and a right answer, and never in the way of one."""

from __future__ import annotations

import math

from rl.toy import ToyEnvironment

from firstlight.rl.environments.format_reward import WithFormatReward
from firstlight.rl.environments.table import open_environment


def rewards(*own: float | None, text: str = "plain") -> list[float | None]:
    values = iter(own)
    environment = WithFormatReward(ToyEnvironment(lambda problem, text: next(values)), 0.1)
    return [environment.reward(environment.problem("train", 0), text, ()) for _ in own]


def test_the_larger_of_the_two_counts() -> None:
    assert rewards(0.0, 0.05, 0.5, 1.0) == [0.1, 0.1, 0.5, 1.0]
    assert rewards(0.0, 1.0, text="é") == [0.0, 1.0]


def test_what_is_no_reward_stays_none() -> None:
    nothing, not_a_number = rewards(None, math.nan)
    assert nothing is None
    assert math.isnan(not_a_number)


def test_everything_else_is_the_environments_own(tmp_path) -> None:
    plain = open_environment("arithmetic", cache_dir=tmp_path)
    paid = open_environment("arithmetic", cache_dir=tmp_path, format_reward=0.1)
    problem = paid.problem("test", 3)
    assert problem == plain.problem("test", 3)
    assert (paid.name, paid.uses_python) == ("arithmetic", True)
    assert paid.num_problems("train") == plain.num_problems("train")
    assert [paid.reward(problem, text, ()) for text in ("#### 12345678", f"#### {problem.answer}", "no")] == [0.1, 1, 0]
