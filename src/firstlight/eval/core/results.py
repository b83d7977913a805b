"""From decisions to numbers: accuracies, centred scores and CORE, each with its standard error.

    accuracy   share of right decisions; standard error sqrt(a (1 - a) / n)
    centred    (accuracy - baseline) / (1 - baseline): 0 is guessing, 1 is all right
    CORE       mean of the centred scores of the 22 tasks (Li et al. 2024, arXiv 2406.11794)

The standard error of the mean adds up the tasks' variances. Two tasks on the same examples (HellaSwag with and without
examples shown) go right and wrong together, so their covariance over those examples is added as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.eval.core.bundle import Bundle, Task
from firstlight.eval.core.originals import TASKS
from firstlight.eval.core.tasks import COUNTS, Decision

NEAR_TIE_NATS = 1e-4
"""Options this close in loss per id may change places with the order of a sum; bf16 moves losses about 100 times as much."""


@dataclass(frozen=True)
class TaskResult:
    """Score of one task. counts: for each of `COUNTS` in how many examples it held. num_near_ties: margins below
    `NEAR_TIE_NATS`. seconds: spent on it, of the slowest process; NaN where not known."""

    label: str
    kind: str
    num_fewshot: int
    num_examples: int
    num_correct: int
    baseline: float
    seconds: float
    counts: Mapping[str, int]
    num_near_ties: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_examples

    @property
    def stderr(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_examples)

    @property
    def centered(self) -> float:
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def centered_stderr(self) -> float:
        return self.stderr / (1 - self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "task": self.label,
            "kind": self.kind,
            "num_fewshot": self.num_fewshot,
            "num_examples": self.num_examples,
            "num_correct": self.num_correct,
            "accuracy": self.accuracy,
            "stderr": self.stderr,
            "baseline": self.baseline,
            "centered": self.centered,
            "centered_stderr": self.centered_stderr,
            "seconds": self.seconds if math.isfinite(self.seconds) else None,
            "num_near_ties": self.num_near_ties,
            **{f"num_{name}": self.counts.get(name, 0) for name in COUNTS},
        }


@dataclass(frozen=True)
class CoreResult:
    """Scores of tasks and their mean. is_core: all 22 tasks ran, so the mean is CORE.

    not_comparable: reasons why the mean is not one to hold against published ones; empty where it is.
    """

    tasks: tuple[TaskResult, ...]
    mean: float
    mean_stderr: float
    is_core: bool
    baselines: str
    max_per_task: int | None
    bundle_hash: str
    not_comparable: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``CORE``, or what the mean is of."""
        name = "CORE" if self.is_core else f"mean over {len(self.tasks)} tasks"
        return name + (f" (at most {self.max_per_task} examples a task)" if self.max_per_task else "")

    def describe(self) -> str:
        """The score in one line."""
        version = "" if self.baselines == "v1" else f", baselines {self.baselines}"
        label = "; not comparable with published scores" if self.not_comparable else ""
        return f"{self.name}: {self.mean:.4f} +- {self.mean_stderr:.4f}{version}{label}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. ``core`` is null unless all 22 tasks ran."""
        return {
            "core": self.mean if self.is_core else None,
            "core_stderr": self.mean_stderr if self.is_core else None,
            "mean_centered": self.mean,
            "mean_centered_stderr": self.mean_stderr,
            "num_tasks": len(self.tasks),
            "baselines": self.baselines,
            "max_per_task": self.max_per_task,
            "bundle_hash": self.bundle_hash,
            "is_comparable": not self.not_comparable,
            "not_comparable": list(self.not_comparable),
            "notes": list(self.notes),
            "tasks": [task.to_dict() for task in self.tasks],
        }


def summarize(
    bundle: Bundle,
    tasks: Sequence[Task],
    decisions: Mapping[str, Sequence[Decision]],
    *,
    baselines: str = "v1",
    max_per_task: int | None = None,
    seconds: Mapping[str, float] | None = None,
) -> CoreResult:
    """Scores of ``tasks`` from their decisions, by label and in the order of the examples."""
    found = tuple(
        _task_result(
            task, decisions[task.label], bundle.baselines[baselines][task.label], (seconds or {}).get(task.label)
        )
        for task in tasks
    )
    is_core = {task.label for task in tasks} == set(TASKS)
    reasons = list(bundle.differences)
    if not is_core:
        reasons.append(f"{len(tasks)} tasks ran, CORE is the mean of all {len(TASKS)}")
    if max_per_task is not None:
        reasons.append(f"--max-per-task {max_per_task}: not all examples, and other examples shown before them")
    num_cropped = sum(task.counts.get("cropped", 0) for task in found)
    if num_cropped:
        reasons.append(f"{num_cropped:,} prompts were longer than the context and lost their beginning")
    return CoreResult(
        tasks=found,
        mean=sum(task.centered for task in found) / len(found),
        mean_stderr=mean_stderr(tasks, found, decisions),
        is_core=is_core,
        baselines=baselines,
        max_per_task=max_per_task,
        bundle_hash=bundle.content_hash,
        not_comparable=tuple(reasons),
        notes=bundle.notes if baselines == "v2" else (),
    )


def mean_stderr(
    tasks: Sequence[Task], results: Sequence[TaskResult], decisions: Mapping[str, Sequence[Decision]]
) -> float:
    """Standard error of the mean centred score, with the covariance of tasks that have their examples in common."""
    variance = sum(result.centered_stderr**2 for result in results)
    for i, (task, result) in enumerate(zip(tasks, results, strict=True)):
        for other, other_result in list(zip(tasks, results, strict=True))[:i]:
            if task.dataset_uri != other.dataset_uri or result.num_examples != other_result.num_examples:
                continue
            both = [
                a.is_correct and b.is_correct
                for a, b in zip(decisions[task.label], decisions[other.label], strict=True)
            ]
            covariance = (sum(both) / len(both) - result.accuracy * other_result.accuracy) / len(both)
            variance += 2 * covariance / (1 - result.baseline) / (1 - other_result.baseline)
    return math.sqrt(max(0.0, variance)) / len(results)


def _task_result(task: Task, decisions: Sequence[Decision], baseline: float, seconds: float | None) -> TaskResult:
    marks = Counter(mark for decision in decisions for mark in decision.marks)
    return TaskResult(
        label=task.label,
        kind=task.kind,
        num_fewshot=task.num_fewshot,
        num_examples=len(decisions),
        num_correct=sum(decision.is_correct for decision in decisions),
        baseline=baseline,
        seconds=math.nan if seconds is None else seconds,
        counts={name: marks[name] for name in COUNTS},
        num_near_ties=sum(d.margin_nats is not None and d.margin_nats < NEAR_TIE_NATS for d in decisions),
    )
