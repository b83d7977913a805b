"""The mean reward of a model on problems of an environment, with its standard error, and two models compared in pairs.

Problems are a fixed choice of the split's, the same for every model and seed, and each is answered several times. The
error is over problems: answers to one problem go right and wrong together, so a problem's mean reward is one observation
(a cluster; E. Miller 2024, Adding Error Bars to Evals, arXiv 2411.00640, section 2.2). Two models' scores on the same
problems are compared problem by problem, which leaves out how hard the problems are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from firstlight.data.shuffle import mix_seed, seeded_permutation
from firstlight.errors import ConfigError, DataError
from firstlight.eval.student_t import t_cdf, t_quantile
from firstlight.model.gpt import GPT
from firstlight.rl.environments.base import Environment, Split, is_solved
from firstlight.rl.pass_at_k import pass_at_k, powers_of_two
from firstlight.rl.rollouts import MAX_ROWS, Group, Sampling, sample_groups
from firstlight.rl.tool import open_tool
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer

CONFIDENCE = 0.95


@dataclass(frozen=True)
class ProblemScore:
    """What a model made of one problem. rewards: of each sample, None where it has none. The counts are over samples."""

    source: str
    rewards: tuple[float | None, ...]
    num_format: int
    num_ended: int
    num_chosen: int

    @property
    def valid(self) -> list[float]:
        return [reward for reward in self.rewards if reward is not None]

    @property
    def mean_reward(self) -> float:
        return math.fsum(self.valid) / len(self.valid)


@dataclass(frozen=True)
class RewardScores:
    """Scores of a model. rows: a problem each, in a fixed order, for `compare_rewards`.

    num_too_long: problems whose prompt left no room; they are in nothing else.
    """

    environment: str
    split: Split
    samples_per_prompt: int
    temperature: float
    rows: tuple[ProblemScore, ...]
    num_too_long: int = 0

    @property
    def scored(self) -> list[ProblemScore]:
        """Problems of which at least one sample has a reward."""
        return [row for row in self.rows if row.valid]

    @property
    def mean_reward(self) -> float:
        return _mean([row.mean_reward for row in self.scored])

    @property
    def stderr(self) -> float:
        return _stderr([row.mean_reward for row in self.scored])

    def pass_at_k(self, k: int) -> tuple[float, float]:
        """(pass@k, its standard error), over problems that have at least k valid samples."""
        values = [
            pass_at_k(len(row.valid), sum(map(is_solved, row.valid)), k) for row in self.rows if len(row.valid) >= k
        ]
        return _mean(values), _stderr(values)

    @property
    def num_samples(self) -> int:
        return sum(len(row.rewards) for row in self.rows)

    @property
    def num_invalid(self) -> int:
        return sum(len(row.rewards) - len(row.valid) for row in self.rows)

    @property
    def format_frac(self) -> float:
        return _ratio(sum(row.num_format for row in self.rows), self.num_samples)

    @property
    def ended_frac(self) -> float:
        return _ratio(sum(row.num_ended for row in self.rows), self.num_samples)

    @property
    def length_mean(self) -> float:
        """Ids that the model chose for an answer."""
        return _ratio(sum(row.num_chosen for row in self.rows), self.num_samples)

    def describe(self) -> str:
        """The scores in one line."""
        n = self.samples_per_prompt
        first, last = self.pass_at_k(1), self.pass_at_k(n)
        shown = f"{self.environment} ({self.split}, {len(self.rows)} problems x {n}): reward {self.mean_reward:.4f} +- {self.stderr:.4f}"
        shown += f", pass@1 {first[0]:.1%}" + (f", pass@{n} {last[0]:.1%}" if n > 1 else "")
        shown += f", format {self.format_frac:.1%}, ended {self.ended_frac:.1%}, length {self.length_mean:.1f}"
        shown += f", {self.num_invalid} samples without a reward" if self.num_invalid else ""
        return shown + (f", {self.num_too_long} prompts too long" if self.num_too_long else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``rows`` can be given to `scores_from_dict`."""
        values = {
            "environment": self.environment, "split": self.split, "num_problems": len(self.rows),
            "samples_per_prompt": self.samples_per_prompt, "temperature": self.temperature,
            "reward_mean": self.mean_reward, "reward_stderr": self.stderr,
            **{f"pass_at_{k}": self.pass_at_k(k)[0] for k in powers_of_two(self.samples_per_prompt)},
            "format_frac": self.format_frac, "ended_frac": self.ended_frac, "length_mean": self.length_mean,
            "num_invalid": self.num_invalid, "num_too_long": self.num_too_long,
        }  # fmt: skip
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return {**values, "rows": [asdict(row) for row in self.rows]}


def scores_from_dict(values: dict[str, Any]) -> RewardScores:
    """Inverse of `RewardScores.to_dict`."""
    rows = tuple(map(_problem_score, values["rows"]))
    return RewardScores(
        values["environment"], values["split"], values["samples_per_prompt"], values["temperature"], rows,
        values["num_too_long"],
    )  # fmt: skip


def evaluate_rewards(
    model: GPT,
    environment: Environment,
    tokenizer: Tokenizer,
    *,
    split: Split,
    max_problems: int | None,
    samples_per_prompt: int,
    temperature: float,
    top_k: int | None,
    max_new_tokens: int,
    seed: int,
    runtime: Runtime,
    max_rows: int = MAX_ROWS,
    beat: Callable[[str], None] = lambda what: None,
) -> RewardScores:
    """Answer problems of a split and score the answers, divided among the ranks. A collective call; all get the scores.

    max_problems: None for all of them. An answer that does not end has reward 0, as in training.
    Raises ConfigError for values without meaning and DataError where there is no problem.
    """
    for flag, value in (("max_problems", max_problems), ("samples_per_prompt", samples_per_prompt)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value} is too small", hint="the smallest is 1")
    num = environment.num_problems(split)
    if num < 1:
        raise DataError(f"the environment {environment.name} has no {split} problem")
    # Not from the run's seed: two seeds are to be compared on the same problems.
    chosen = seeded_permutation(num, mix_seed("rewards", split))[:max_problems].tolist()
    mine = range(runtime.rank, len(chosen), runtime.world_size)
    asked = [(place, environment.problem(split, chosen[place])) for place in mine]
    with open_tool(environment, tokenizer) as tool:
        sampling = Sampling(
            seed=mix_seed(seed, "rewards"), samples_per_prompt=samples_per_prompt, max_new_tokens=max_new_tokens,
            seq_len=model.config.max_seq_len, temperature=temperature, top_k=top_k, tool=tool, max_rows=max_rows,
        )  # fmt: skip
        groups = sample_groups(model, environment, tokenizer, asked, sampling, beat=beat)
    found: dict[int, dict[str, Any]] = {}
    for text in runtime.control.gather_texts(json.dumps([[g.prompt, _row(g)] for g in groups])):
        found |= {place: row for place, row in json.loads(text) if row is not None}
    rows = [_problem_score(found[i]) for i in sorted(found)]
    return RewardScores(
        environment.name, split, samples_per_prompt, temperature, tuple(rows), num_too_long=len(chosen) - len(rows)
    )


def _problem_score(row: dict[str, Any]) -> ProblemScore:
    """From what JSON makes of one."""
    return ProblemScore(
        row["source"], tuple(row["rewards"]), row["num_format"], row["num_ended"], row["num_chosen"]
    )  # fmt: skip


def _row(group: Group) -> dict[str, Any] | None:
    if not group.rollouts:
        return None
    rollouts = group.rollouts
    return asdict(
        ProblemScore(
            source=group.problem.source,
            rewards=tuple(group.rewards),
            num_format=sum(r.has_format for r in rollouts),
            num_ended=sum(r.has_ended for r in rollouts),
            num_chosen=sum(r.is_forced.count(False) for r in rollouts),
        )
    )


@dataclass(frozen=True)
class RewardDifference:
    """Mean reward after minus before, on the same problems. low, high: interval of 95 %. p_value: two-sided, paired t."""

    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    num_problems: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare_rewards(before: RewardScores, after: RewardScores) -> RewardDifference:
    """Paired difference over the problems that both have scored. Raises DataError where they share fewer than two."""
    rewards = [{row.source: row.mean_reward for row in scores.scored} for scores in (before, after)]
    shared = [source for source in rewards[0] if source in rewards[1]]
    if len(shared) < 2:
        raise DataError(
            f"{len(shared)} problems are in both scores", hint="score both on the same environment and split"
        )
    differences = [rewards[1][source] - rewards[0][source] for source in shared]
    mean, stderr, df = _mean(differences), _stderr(differences), len(shared) - 1
    half = t_quantile((1 + CONFIDENCE) / 2, df) * stderr
    if stderr > 0:
        p_value = 2 * (1 - t_cdf(abs(mean) / stderr, df))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return RewardDifference(mean, stderr, mean - half, mean + half, p_value, len(shared))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _stderr(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
