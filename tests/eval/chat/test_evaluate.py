"""Claims of eval/chat/evaluate.py: what is kept is not asked again, ranks share the questions, a stop ends it on all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ranks import run_ranks

from firstlight.errors import ConfigError
from firstlight.eval.chat.evaluate import ask_all
from firstlight.eval.chat.results import ChatResult
from firstlight.eval.chat.task import ChatTask, Grade, Item
from firstlight.runtime.context import Runtime
from firstlight.tokens.conversation import Message
from firstlight.train.guard import Dropped

CPU = Runtime(device=torch.device("cpu"))


def task(name: str, num: int) -> ChatTask:
    items = tuple(
        Item((Message.of("user", f"{name} {i}"),), str(i), str(i), grade=lambda text: Grade(True, True))
        for i in range(num)
    )
    return ChatTask(name, "generative", items, 8)


TASKS = [task("one", 70), task("two", 5)]


class Fake:
    """Right where the number of the question is a multiple of three."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def ask(
        self, task: ChatTask, items: Sequence[Item], indices: Sequence[int], *, world_size: int = 1
    ) -> list[dict[str, Any]]:
        self.asked += [(task.name, items[i].where) for i in indices]
        return [
            {"task": task.name, "index": i, "correct": int(items[i].where) % 3 == 0, "choice": -1, "margin": None,
             "marks": ["end_token"], "seconds": 0.5}
            for i in indices
        ]  # fmt: skip


def ask(fake: Fake, runtime: Runtime = CPU, **options) -> ChatResult:
    return ask_all(fake, TASKS, runtime=runtime, **options)  # pyrefly: ignore


def test_every_question_is_asked_once_and_counted() -> None:
    fake, seen, kept = Fake(), [], []
    result = ask(fake, on_records=kept.extend, progress=lambda *where: seen.append(where))
    assert sorted(fake.asked) == sorted((t.name, item.where) for t in TASKS for item in t.items)
    # Multiples of 3 below 70 and below 5.
    assert [sum(each.right) for each in result.tasks] == [24, 2]
    assert result.tasks[1].seconds == 2.5
    assert len(kept) == 75
    assert seen[-1] == (75, 75, "two")
    few = Fake()
    assert [each.num_items for each in ask(few, max_per_task=3).tasks] == [3, 3]
    assert few.asked[:3] == fake.asked[:3]


def test_what_was_kept_is_not_asked_again() -> None:
    kept: list[dict] = []
    whole = ask(Fake(), on_records=kept.extend)
    fake = Fake()
    stray = {"task": "gone", "index": 0, "correct": True, "choice": 0, "margin": None, "marks": [], "seconds": 0.0}
    again = ask(fake, done=[*kept[:40], stray, {**kept[0], "index": 999}])
    assert len(fake.asked) == 35
    assert again == whole


def test_a_stop_ends_it_and_keeps_what_there_is() -> None:
    kept: list[dict] = []
    with pytest.raises(Dropped):
        ask(Fake(), on_records=kept.extend, should_stop=lambda: True)
    assert len(kept) == 0
    # Behind the last question there is nothing left to stop.
    assert ask(Fake(), done=[], max_per_task=2, should_stop=lambda: False).tasks[0].num_items == 2


def test_what_cannot_be_kept_ends_it() -> None:
    def refuse(records: list[dict]) -> None:
        raise ConfigError("the disk is full")

    with pytest.raises(ConfigError, match="disk is full"):
        ask(Fake(), on_records=refuse)


def on_ranks(runtime: Runtime) -> tuple[list[float], int]:
    fake = Fake()
    result = ask(fake, runtime)
    return [sum(each.right) for each in result.tasks], len(fake.asked)


def test_two_processes_share_the_questions_and_know_the_same() -> None:
    [(right_0, asked_0), (right_1, asked_1)] = run_ranks(on_ranks, 2)
    assert right_0 == right_1 == [24, 2]
    assert asked_0 + asked_1 == 75
    assert abs(asked_0 - asked_1) <= 3
