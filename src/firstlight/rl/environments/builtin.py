"""Questions of `builtin-chat` with one right answer: spelling a word, counting its letters, choosing a letter.

    Spell the word "cat".             reward 1 for c - a - t
    How many "r" are in "bread"?      reward 1 for an answer that ends with #### 1; the Python tool may be used
    Which ...? A. ... B. ...          reward 1 for the right letter

Training problems are those of its training split, test problems those of its test split: other words, other facts.
"""

from __future__ import annotations

from pathlib import Path

from firstlight.data.chat.builtin import open_builtin_chat
from firstlight.data.chat.builtin_answers import Kind
from firstlight.errors import ConfigError
from firstlight.rl.environments.base import SPLITS, Problem
from firstlight.rl.environments.listed import ListedEnvironment, check_not_empty


def open_spelling(place: str, *, cache_dir: Path) -> ListedEnvironment:
    """Words to spell."""
    return _open("spelling", "spelling", place, cache_dir=cache_dir, uses_python=False)


def open_counting(place: str, *, cache_dir: Path) -> ListedEnvironment:
    """Letters to count."""
    return _open("counting", "counting", place, cache_dir=cache_dir, uses_python=True)


def open_choice(place: str, *, cache_dir: Path) -> ListedEnvironment:
    """Multiple choice about the documentation. Guessing is right as often as one in the number of choices."""
    return _open("choice", "choice", place, cache_dir=cache_dir, uses_python=False)


def _open(name: str, kind: Kind, place: str, *, cache_dir: Path, uses_python: bool) -> ListedEnvironment:
    if place:
        raise ConfigError(f"{name}:{place}: its questions are those of builtin-chat", hint=f"--environment {name}")
    chat = open_builtin_chat(cache_dir=cache_dir)
    problems = {
        split: [
            Problem(tuple(question.messages), question.answer, f"builtin-chat-{split}:{kind}:{i}")
            for i, question in enumerate(q for q in chat.questions(split) if q.kind == kind)
        ]
        for split in SPLITS
    }
    return check_not_empty(ListedEnvironment(name, kind, problems, uses_python))
