"""Claims of eval/chat/results.py, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from firstlight.eval.chat.catalog import CHAT_CORE
from firstlight.eval.chat.results import ChatResult, GroupScore, TaskScore, summarize
from firstlight.eval.chat.task import ChatTask, Grade, Item, choice_item
from firstlight.tokens.conversation import Message


def record(index: int, correct: bool, *marks: str) -> dict:
    return {"index": index, "correct": correct, "marks": list(marks), "seconds": 0.25}


def test_scores_by_hand() -> None:
    letters = ChatTask(
        "letters", "categorical",
        (*(choice_item("q", ["a", "b", "c", "d"], 0, where="x") for _ in range(6)),
         *(choice_item("q", ["a", "b"], 0, where="x") for _ in range(2))),
    )  # fmt: skip
    words = ChatTask(
        "words", "generative",
        tuple(Item((Message.of("user", "q"),), "a", "x", grade=lambda t: Grade(True, True), group="ab"[i % 2]) for i in range(4)),
    )  # fmt: skip
    records = {
        "letters": [record(i, i < 5, *(["cropped"] if i == 0 else [])) for i in range(8)],
        "words": [record(0, True, "format", "end_token"), record(1, False, "format", "max_new_tokens"),
                  record(2, False, "other_token"), record(3, False, "context_full")],
    }  # fmt: skip
    items = {task.name: list(task.items) for task in (letters, words)}
    result = summarize([letters, words], items, records, max_per_task=None)
    first, second = result.tasks
    # 5 of 8; chance (6 * 1/4 + 2 * 1/2) / 8 = 0.3125; error sqrt(0.625 * 0.375 / 8) = 0.171163...
    assert (first.accuracy, first.chance, first.num_cropped, first.seconds) == (0.625, 0.3125, 1, 2.0)
    assert first.stderr == pytest.approx(0.17116329, abs=1e-8)
    # (0.625 - 0.3125) / 0.6875 = 5/11
    assert first.centered == pytest.approx(5 / 11)
    assert first.centered_stderr == pytest.approx(0.17116329 / 0.6875)
    assert (first.format_rate, first.ended_rate, first.limit_rate) == (None, None, None)
    assert (second.accuracy, second.centered, second.format_rate) == (0.25, 0.25, 0.5)
    assert (second.ended_rate, second.limit_rate) == (0.25, 0.5)
    assert second.groups == {"a": GroupScore(2, 1, 1), "b": GroupScore(2, 0, 1)}
    assert result.mean == pytest.approx((5 / 11 + 1 / 4) / 2)
    # sqrt(0.2489648^2 + (sqrt(0.25 * 0.75 / 4))^2) / 2
    assert result.mean_stderr == pytest.approx(math.sqrt(0.24896479**2 + 0.21650635**2) / 2, abs=1e-7)
    assert result.describe().startswith("mean over 2 tasks: 0.3523 +- 0.1650")
    found = result.to_dict()
    assert found["chat_core"] is None
    assert found["tasks"][1]["ends"] == {"end_token": 1, "other_token": 1, "max_new_tokens": 1, "context_full": 1}
    assert found["tasks"][1]["groups"]["a"] == {"num_items": 2, "accuracy": 0.5, "format_rate": 0.5}


def scored(name: str, num_right: int, num: int, chance: float) -> TaskScore:
    right = tuple(i < num_right for i in range(num))
    return TaskScore(name, "categorical", chance, right, (), {}, 0, 1.0, {}, "h")


def test_chat_core_is_the_mean_of_its_six_tasks_only() -> None:
    chances = [0.25, 0.25, 0.25, 0.0, 0.0, 0.0]
    rights = [40, 30, 25, 10, 0, 50]
    tasks = tuple(scored(*each, chance) for *each, chance in zip(CHAT_CORE, rights, [100] * 6, chances, strict=True))
    result = ChatResult(tasks, None)
    # (0.15/0.75 + 0.05/0.75 + 0 + 0.1 + 0 + 0.5) / 6 = 0.866667 / 6
    assert result.name == "ChatCORE"
    assert result.to_dict()["chat_core"] == pytest.approx(0.14444444)
    errors = [
        math.sqrt(p * (1 - p) / 100) / (1 - c) for p, c in zip([0.4, 0.3, 0.25, 0.1, 0, 0.5], chances, strict=True)
    ]
    assert result.mean_stderr == pytest.approx(math.sqrt(sum(e * e for e in errors)) / 6)
    assert not ChatResult(tasks, 100).is_chat_core
    assert not ChatResult(tasks[:5], None).is_chat_core
    assert ChatResult(tasks, 100).name == "mean over 6 tasks (at most 100 questions a task)"
    assert ChatResult(tasks[:1], None).name == "centred arc_easy"
