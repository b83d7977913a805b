"""GSM8K, SVAMP and spelling: an answer is right where its last line ``#### NUMBER`` has the right number.

GSM8K: word problems (Cobbe et al. 2021, arXiv 2110.14168), ``question`` and ``answer`` with ``#### 72`` at its end. SVAMP:
shorter ones (Patel et al. 2021, arXiv 2103.07191), ``context`` or ``Body`` and ``Question``, and ``answer`` or ``Answer``.
spelling asks how often a letter is in a word (nanochat's SpellingBee), in the words of `builtin-chat`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from firstlight.data.chat.builtin_answers import final_line, final_number
from firstlight.data.chat.builtin_words import COUNT
from firstlight.errors import DataError
from firstlight.eval.chat.multiple_choice import Row
from firstlight.eval.chat.task import ChatTask, Grade, Item
from firstlight.tokens.conversation import Message

PROBLEM_TOKENS = 300
SPELLING_TOKENS = 96
NUM_WORDS = 500
FEWEST_WORDS = 20
WORD_CHARS = (3, 12)
PRESENT_FRAC = 0.85
"""Share of the questions whose letter is in the word, as in `builtin-chat`."""


def graded(answer: str, reply: str) -> Grade:
    """A reply against a number, as `final_number` writes it."""
    number = final_number(reply)
    return Grade(number == answer, number is not None)


def gsm8k(rows: Sequence[Row]) -> ChatTask:
    """Raises DataError for a row of another form."""
    items = []
    for where, row in rows:
        question, answer = (row.get("question"), row.get("answer")) if isinstance(row, dict) else (None, None)
        number = final_number(answer) if isinstance(answer, str) else None
        if not isinstance(question, str) or number is None:
            raise DataError(f"{where} is no problem of GSM8K", hint='{"question": "...", "answer": "... #### 72"}')
        items.append(_problem(question, number, where))
    return ChatTask("gsm8k", "generative", tuple(items), PROBLEM_TOKENS)


def svamp(rows: Sequence[Row]) -> ChatTask:
    """Raises DataError for a row of another form."""
    items = []
    for where, row in rows:
        found = row if isinstance(row, dict) else {}
        body = " ".join(str(found[key]).strip() for key in ("Body", "Question") if key in found)
        question = found.get("context", body)
        number = final_number(final_line(str(found.get("answer", found.get("Answer", "")))))
        if not isinstance(question, str) or not question or number is None:
            raise DataError(f"{where} is no problem of SVAMP", hint='{"context": "...", "answer": "12"}')
        items.append(_problem(question, number, where))
    return ChatTask("svamp", "generative", tuple(items), PROBLEM_TOKENS)


def spelling(words: Sequence[str], *, origin: str) -> ChatTask:
    """Letters to count in ``NUM_WORDS`` of the words, the same for the same words. origin: of the words, for people.

    Raises DataError where there are too few.
    """
    fewest, most = WORD_CHARS
    usable = sorted({word for word in words if re.fullmatch(f"[a-z]{{{fewest},{most}}}", word)})
    if len(usable) < FEWEST_WORDS:
        raise DataError(
            f"{origin} has {len(usable)} words of {fewest} to {most} small letters; spelling needs {FEWEST_WORDS}"
        )
    draw = random.Random("firstlight spelling")
    items = []
    for word in draw.sample(usable, min(NUM_WORDS, len(usable))):
        letter = draw.choice(word if draw.random() < PRESENT_FRAC else "abcdefghijklmnopqrstuvwxyz")
        question = draw.choice(COUNT).format(word=word, letter=letter)
        items.append(_problem(question, str(word.count(letter)), f"{origin}: {word}"))
    return ChatTask("spelling", "generative", tuple(items), SPELLING_TOKENS)


def _problem(question: str, number: str, where: str) -> Item:
    return Item((Message.of("user", question),), number, where, grade=partial(graded, number))


def words_of(rows: Sequence[Any]) -> list[str]:
    """Words of a list with one a line."""
    return [str(row).strip() for row in rows if str(row).strip()]
