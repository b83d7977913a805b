"""From decisions to numbers: accuracy, centred accuracy, form and ends by task; ChatCORE; each with its standard error.

    accuracy   share of right answers a; standard error sqrt(a (1 - a) / n)
    chance     what guessing gets: 1 / choices where a letter is asked for, else 0; the mean over the questions asked
    centred    (a - chance) / (1 - chance): 0 is guessing, 1 is all right
    ChatCORE   mean of the centred accuracies; its standard error adds up the tasks' variances

The tasks ask different questions, so their errors are independent. The error covers the choice of questions, not that
another seed of the training gives another model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.eval.chat.answers import CROPPED, END_TOKEN, ENDS, FORMAT, OTHER_TOKEN, Record
from firstlight.eval.chat.catalog import CHAT_CORE
from firstlight.eval.chat.task import ChatTask, Item


@dataclass(frozen=True)
class GroupScore:
    """A part of a task's questions: of one subject, or of one kind."""

    num_items: int
    num_right: int
    num_format: int


@dataclass(frozen=True)
class TaskScore:
    """Score of one task. right: of each question in the task's order. formatted: whether each answer has the form that was
    asked for; empty for letters. ends: answers by how they ended (`ENDS`). groups: empty where there is but one."""

    name: str
    kind: str
    chance: float
    right: tuple[bool, ...]
    formatted: tuple[bool, ...]
    ends: Mapping[str, int]
    num_cropped: int
    seconds: float
    groups: Mapping[str, GroupScore]
    content_hash: str

    @property
    def num_items(self) -> int:
        return len(self.right)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def stderr(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_items)

    @property
    def centered(self) -> float:
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def centered_stderr(self) -> float:
        return self.stderr / (1 - self.chance)

    @property
    def format_rate(self) -> float | None:
        """Share of answers with the form that was asked for; None where only letters are compared."""
        return sum(self.formatted) / self.num_items if self.formatted else None

    @property
    def ended_rate(self) -> float | None:
        """Share of answers that ended with their end token. None for letters."""
        return self.ends[END_TOKEN] / self.num_items if self.kind == "generative" else None

    @property
    def limit_rate(self) -> float | None:
        """Share of answers that ended at a limit: of their own length, or of the context. None for letters."""
        if self.kind != "generative":
            return None
        return 1 - (self.ends[END_TOKEN] + self.ends[OTHER_TOKEN]) / self.num_items

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        groups = {
            name: {
                "num_items": g.num_items,
                "accuracy": g.num_right / g.num_items,
                "format_rate": g.num_format / g.num_items,
            }
            for name, g in self.groups.items()
        }
        return {
            "task": self.name, "kind": self.kind, "num_items": self.num_items, "num_right": sum(self.right),
            "accuracy": self.accuracy, "stderr": self.stderr, "chance": self.chance, "centered": self.centered,
            "centered_stderr": self.centered_stderr, "format_rate": self.format_rate, "ended_rate": self.ended_rate, "limit_rate": self.limit_rate,
            "ends": {name: self.ends.get(name, 0) for name in ENDS} if self.kind == "generative" else None,
            "num_cropped": self.num_cropped, "seconds": self.seconds, "groups": groups, "content_hash": self.content_hash,
        }  # fmt: skip


@dataclass(frozen=True)
class ChatResult:
    """Scores of tasks and the mean of their centred accuracies. is_chat_core: exactly ChatCORE's tasks ran, in full."""

    tasks: tuple[TaskScore, ...]
    max_per_task: int | None

    @property
    def mean(self) -> float:
        return sum(task.centered for task in self.tasks) / len(self.tasks)

    @property
    def mean_stderr(self) -> float:
        return math.sqrt(sum(task.centered_stderr**2 for task in self.tasks)) / len(self.tasks)

    @property
    def is_chat_core(self) -> bool:
        return {task.name for task in self.tasks} == set(CHAT_CORE) and self.max_per_task is None

    @property
    def name(self) -> str:
        """``ChatCORE``, or what the mean is of."""
        if self.is_chat_core:
            return "ChatCORE"
        of = f"mean over {len(self.tasks)} tasks" if len(self.tasks) > 1 else f"centred {self.tasks[0].name}"
        return of + (f" (at most {self.max_per_task} questions a task)" if self.max_per_task else "")

    def describe(self) -> str:
        """The score in one line."""
        return f"{self.name}: {self.mean:.4f} +- {self.mean_stderr:.4f}"

    def task(self, name: str) -> TaskScore:
        """The score of one task, which must be among them."""
        return next(task for task in self.tasks if task.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. ``chat_core`` is null unless exactly its tasks ran in full."""
        return {
            "chat_core": self.mean if self.is_chat_core else None,
            "chat_core_stderr": self.mean_stderr if self.is_chat_core else None,
            "mean_centered": self.mean,
            "mean_centered_stderr": self.mean_stderr,
            "max_per_task": self.max_per_task,
            "tasks": [task.to_dict() for task in self.tasks],
        }


def summarize(
    tasks: Sequence[ChatTask],
    items: Mapping[str, Sequence[Item]],
    records: Mapping[str, Sequence[Record]],
    *,
    max_per_task: int | None,
) -> ChatResult:
    """Scores from the records of each task, in the order of its items."""
    return ChatResult(tuple(_score(task, items[task.name], records[task.name]) for task in tasks), max_per_task)


def _score(task: ChatTask, items: Sequence[Item], records: Sequence[Record]) -> TaskScore:
    marks = Counter(mark for record in records for mark in record["marks"])
    names = sorted({item.group for item in items})
    groups = {}
    if len(names) > 1:
        for name in names:
            of_group = [record for item, record in zip(items, records, strict=True) if item.group == name]
            groups[name] = GroupScore(
                len(of_group),
                sum(record["correct"] for record in of_group),
                sum(FORMAT in record["marks"] for record in of_group),
            )
    return TaskScore(
        name=task.name,
        kind=task.kind,
        chance=sum(item.chance for item in items) / len(items),
        right=tuple(record["correct"] for record in records),
        formatted=tuple(FORMAT in record["marks"] for record in records) if task.kind == "generative" else (),
        ends={name: marks[name] for name in ENDS},
        num_cropped=marks[CROPPED],
        seconds=sum(record["seconds"] for record in records),
        groups=groups,
        content_hash=task.content_hash,
    )
