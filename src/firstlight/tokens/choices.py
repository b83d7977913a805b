"""Multiple choice as a user asks it: the question, a line for each choice, and an answer of one letter.

A choice begins its line with the letter alone, so the letter is the same id there as at the start of an answer (a space
before it would make it another).
"""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def choices_prompt(question: str, choices: Sequence[str]) -> str:
    """The user's text; the answer to it is the letter of one choice. Raises DataError for fewer than 2 or more than 26.

    >>> print(choices_prompt("Which is red?", ["grass", "blood"]))
    Which is red?
    A. grass
    B. blood
    Answer with the letter only.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"a question with {len(choices)} choices: {question[:80]!r}", hint=f"it has 2 to {len(LETTERS)} choices"
        )
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter only."])
