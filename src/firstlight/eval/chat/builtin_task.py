"""The held-out questions of `builtin-chat` as a task: all five kinds in turn, each with the check that made its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from firstlight.data.chat.builtin import Question
from firstlight.eval.chat.task import ChatTask, Grade, Item

ANSWER_TOKENS = 96
NUM_CHOICES = 4


def builtin_chat(questions: Sequence[Question]) -> ChatTask:
    """A generative task, the letters of its choices included: writing nothing but the letter is part of what is asked."""
    items = tuple(
        Item(
            question.messages,
            question.answer,
            f"builtin-chat: {i}",
            grade=_grade_of(question),
            chance=1 / NUM_CHOICES if question.kind == "choice" else 0.0,
            group=question.kind,
        )
        for i, question in enumerate(questions)
    )
    return ChatTask("builtin-chat", "generative", items, ANSWER_TOKENS, is_mixed=True)


def _grade_of(question: Question) -> Callable[[str], Grade]:
    return lambda reply: Grade(question.is_right(reply), question.has_format(reply))
