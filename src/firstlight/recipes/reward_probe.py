"""The rewards of a run on problems that it is never trained on: before, on the way, and after, with the difference.

runs/<name>/rewards/step_00000000.json    the score of each problem, so that two can be compared problem by problem
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firstlight.data.store import read_json, write_durably
from firstlight.errors import DataError
from firstlight.model.gpt import GPT
from firstlight.rl.scores import RewardScores, compare_rewards, scores_from_dict
from firstlight.runtime.console import Console
from firstlight.train.probing import Budget

FOLDER = "rewards"


class RewardProbe:
    """Score before the first step and every ``every`` steps (0: only before); `last` scores the end. evaluate: model -> scores."""

    name = "reward"

    def __init__(
        self,
        evaluate: Callable[[GPT], RewardScores],
        *,
        every: int,
        run_dir: Path,
        console: Console,
        is_main: bool,
    ) -> None:
        self._evaluate, self._every = evaluate, every
        self._folder = run_dir / FOLDER
        self._console, self._is_main = console, is_main
        self.budget = Budget(0)

    def due(self, step: int, is_last: bool) -> bool:
        return not is_last and (step == 0 or (self._every > 0 and step % self._every == 0))

    def measure(self, model: GPT, step: int, *, is_over: Callable[[], bool]) -> dict[str, Any]:
        scores = self._evaluate(model)
        self._keep(scores, step)
        self._console.say(f"step {step:05d} | {scores.describe()}")
        return row_of(scores)

    def last(self, model: GPT, step: int) -> dict[str, Any]:
        """The score of the end, and its difference from the one before training where that was kept. A collective call."""
        scores = self._evaluate(model)
        self._keep(scores, step)
        self._console.say(f"final: {scores.describe()}")
        row = row_of(scores)
        before = read_json(self._path(0))
        if before is None:
            return row
        first = scores_from_dict(before)
        try:
            found = compare_rewards(first, scores)
        except DataError as error:
            # Training is done: that no difference can be told is no reason to call it failed.
            self._console.warn(f"no difference to the score before training: {error.what}")
            return row
        verdict = "significant" if found.is_shown else "not significant"
        self._console.say(
            f"reward {first.mean_reward:.4f} before, {scores.mean_reward:.4f} after: {found.difference:+.4f} +- "
            f"{found.stderr:.4f} on {found.num_problems} problems (95 %: {found.low:+.4f} to {found.high:+.4f}; {verdict})"
        )
        return row | {
            "reward_before": first.mean_reward,
            "reward_difference": found.difference,
            "reward_difference_stderr": found.stderr,
            "reward_difference_p": found.p_value,
        }

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}.json"

    def _keep(self, scores: RewardScores, step: int) -> None:
        if not self._is_main:
            return
        try:
            self._folder.mkdir(exist_ok=True)
            write_durably(self._path(step), json.dumps(scores.to_dict()).encode())
        except OSError as error:
            self._console.warn(f"{self._path(step)} could not be written: {error.strerror or error}")


def row_of(scores: RewardScores) -> dict[str, Any]:
    """A score as a row of the metrics, without the single problems."""
    return {name: value for name, value in scores.to_dict().items() if name != "rows"}
