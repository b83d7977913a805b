"""Two models on the same questions: the difference of their accuracies with its error, question by question.

What makes a question hard for both cancels in the difference (`firstlight.eval.paired`, which does the arithmetic: with one
seed a side it is a paired t interval). ChatCOREs differ by the mean of the tasks' differences, each divided by 1 - chance;
degrees of freedom are joined as Welch and Satterthwaite do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from firstlight.errors import DataError
from firstlight.eval.chat.results import ChatResult, TaskScore
from firstlight.eval.paired import CONFIDENCE, paired_difference
from firstlight.eval.student_t import t_cdf, t_quantile


@dataclass(frozen=True)
class Gain:
    """What one model has more than another. stderr of the difference; low, high: the interval of 95 %. p_value: two-sided.

    name: a task, a rate, or the mean.
    """

    name: str
    difference: float
    stderr: float
    df: float
    low: float
    high: float
    p_value: float

    @property
    def outcome(self) -> Literal["significantly better", "significantly worse", "no difference shown"]:
        if self.low > 0:
            return "significantly better"
        return "significantly worse" if self.high < 0 else "no difference shown"

    def words(self) -> str:
        """The verdict with its numbers."""
        if self.stderr == 0 and self.difference == 0:
            return "no difference at all"
        # Smaller ones are below what the tail of t can be told to.
        p_value = "p < 1e-12" if self.p_value < 1e-12 else f"p = {self.p_value:.2g}"
        return f"{self.outcome} ({self.difference:+.4f} +- {self.stderr:.4f}, {p_value})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name, "difference": self.difference, "stderr": self.stderr, "low": self.low, "high": self.high,
            "p_value": self.p_value, "outcome": self.outcome,
        }  # fmt: skip


def task_gain(name: str, ours: Sequence[bool], theirs: Sequence[bool]) -> Gain:
    """How many more of the same questions ``ours`` has right, as a share.

    Raises DataError for one question, or different numbers of them.
    """
    if len(ours) != len(theirs):
        raise DataError(f"{name}: {len(ours)} and {len(theirs)} questions cannot be compared one by one")
    if len(ours) < 2:
        raise DataError(f"{name}: one question gives no error", hint="ask at least two")
    # `paired_difference` is of losses in nats a byte: a wrong answer costs one bit of a question of one byte.
    wrong = [(1 - np.asarray(right, np.float64)) * math.log(2) for right in (theirs, ours)]
    found = paired_difference(wrong[0], wrong[1], np.ones(len(ours)))
    return Gain(name, found.difference, found.stderr, found.df, found.low, found.high, found.p_value)


def mean_gain(gains: Sequence[Gain], chances: Sequence[float], *, name: str) -> Gain:
    """The difference of two means of centred accuracies, from the tasks' gains and what guessing gets in each."""
    num = len(gains)
    parts = [
        (gain.difference / (1 - chance) / num, gain.stderr / (1 - chance) / num)
        for gain, chance in zip(gains, chances, strict=True)
    ]
    difference, variance = sum(part for part, _ in parts), sum(error**2 for _, error in parts)
    spread = sum(error**4 / gain.df for gain, (_, error) in zip(gains, parts, strict=True))
    df = variance**2 / spread if spread > 0 else math.inf
    stderr = math.sqrt(variance)
    half = t_quantile((1 + CONFIDENCE) / 2, df) * stderr
    p_value = 2 * (1 - t_cdf(abs(difference) / stderr, df)) if stderr > 0 else float(difference == 0)
    return Gain(name, difference, stderr, df, difference - half, difference + half, p_value)


def compare(ours: ChatResult, theirs: ChatResult) -> list[Gain]:
    """Gain in accuracy of each task of ``ours``, in form of those that write answers, and of the mean of several tasks.

    Raises DataError where the other has not answered the same questions.
    """
    pairs = [(task, _same(task, theirs)) for task in ours.tasks]
    accuracy = [task_gain(task.name, task.right, other.right) for task, other in pairs]
    form = [task_gain(f"{task.name}, form", task.formatted, other.formatted) for task, other in pairs if task.formatted]
    if len(accuracy) == 1:
        return accuracy + form
    return [*accuracy, *form, mean_gain(accuracy, [task.chance for task in ours.tasks], name=ours.name)]


def _same(task: TaskScore, other: ChatResult) -> TaskScore:
    found = [each for each in other.tasks if each.name == task.name]
    if not found or found[0].content_hash != task.content_hash or found[0].num_items != task.num_items:
        raise DataError(f"{task.name}: the two models have not answered the same questions", hint="evaluate both again")
    return found[0]
