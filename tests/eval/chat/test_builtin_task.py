"""Claims of eval/chat/builtin_task.py: the questions and their own checks, in their own order."""

from __future__ import annotations

from firstlight.data.chat.builtin import Question
from firstlight.eval.chat.builtin_task import builtin_chat
from firstlight.tokens.conversation import Message


def test_questions_keep_their_checks_and_their_order() -> None:
    questions = [
        Question(kind, (Message.of("user", f"{kind}?"),), kind, lambda reply, kind=kind: reply == kind, str.isalpha)
        for kind in ("docs", "choice", "spelling", "counting", "arithmetic")
    ]  # pyrefly: ignore
    task = builtin_chat(questions)
    assert [item.group for item in task.ordered()] == ["docs", "choice", "spelling", "counting", "arithmetic"]
    assert [item.chance for item in task.items] == [0, 0.25, 0, 0, 0]
    for item in task.items:
        assert item.grade is not None
        right, other = item.grade(item.answer), item.grade("7")
        assert (right.is_right, right.has_format, other.is_right, other.has_format) == (True, True, False, False)
