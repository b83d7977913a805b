"""What a chat task is: questions in the form of a conversation, and how an answer is judged.

    categorical    the answer is the letter of a choice: which of the letters does the model hold likeliest as its first id?
    generative     the model writes its answer, with the Python tool, and a function judges the text

A new task is one function that returns a `ChatTask`, and a line in `catalog.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.choices import LETTERS, choices_prompt
from firstlight.tokens.conversation import Message

ORDER_SEED = 1337
"""Of the fixed random order of a task's questions, as in `firstlight.eval.core.prompts`."""


@dataclass(frozen=True)
class Grade:
    """is_right: the answer is. has_format: it has the form that was asked for, right or not."""

    is_right: bool
    has_format: bool


@dataclass(frozen=True)
class Item:
    """One question. messages: end with the user's. answer: the right one, as text. where: file and row, for messages.

    num_choices: above 0 where the answer is one of so many letters. grade: of the text of a reply, None for letters.
    chance: share of right answers by guessing. group: what results are also counted by, such as a subject.
    """

    messages: tuple[Message, ...]
    answer: str
    where: str
    num_choices: int = 0
    grade: Callable[[str], Grade] | None = None
    chance: float = 0.0
    group: str = ""


@dataclass(frozen=True)
class ChatTask:
    """Questions of one kind, in the order of their source. max_new_tokens: of an answer. notes: what users should know.

    is_mixed: the source's own order is a good one to take the first few of, and is kept.
    """

    name: str
    kind: Literal["categorical", "generative"]
    items: tuple[Item, ...]
    max_new_tokens: int = 0
    notes: tuple[str, ...] = ()
    is_mixed: bool = False

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all that is asked and what is right, whatever file it came from."""
        digest = hashlib.sha256(json.dumps([self.name, self.kind]).encode())
        for item in self.items:
            texts = [(message.role, message.text) for message in item.messages]
            digest.update(json.dumps([texts, item.answer, item.num_choices]).encode())
        return digest.hexdigest()

    def ordered(self, max_per_task: int | None = None) -> list[Item]:
        """The questions in a fixed mixed order, the first ``max_per_task`` of them: more always include fewer."""
        found = list(self.items)
        if self.is_mixed:
            return found[:max_per_task]
        random.Random(ORDER_SEED).shuffle(found)
        return found[:max_per_task]


def choice_item(question: str, choices: Sequence[str], gold: int, *, where: str, group: str = "") -> Item:
    """A question with choices, in the one wording that training has as well. Raises DataError where it cannot be asked."""
    if not isinstance(question, str) or not 2 <= len(choices) <= len(LETTERS) or not 0 <= gold < len(choices):
        raise DataError(
            f"{where}: no question with choices (right one: {gold}, choices: {len(choices)})",
            hint=f"it needs a question, 2 to {len(LETTERS)} choices and the number of the right one, counted from 0",
        )
    messages = (Message.of("user", choices_prompt(question, choices)),)
    return Item(
        messages, LETTERS[gold], where, num_choices=len(choices), chance=1 / len(choices), group=group,
    )  # fmt: skip


def letter_ids(tokenizer: Tokenizer, num: int) -> list[int]:
    """The id of each of the first letters. Raises DataError for a tokenizer in which one is not a single id."""
    found = [tokenizer.encode(letter) for letter in LETTERS[:num]]
    for letter, ids in zip(LETTERS, found, strict=False):
        if len(ids) != 1:
            raise DataError(
                f"the letter {letter} is {len(ids)} ids in this tokenizer, so it cannot be chosen by one of them",
                hint="use a tokenizer of `firstlight tokenizer train`, or leave out the tasks with choices",
            )
    return [ids[0] for ids in found]
