"""A conversation as ids: one way for training and for asking, so that a model is asked as it was taught.

    <|bos|> <|user_start|> text <|user_end|> <|assistant_start|> text <|assistant_end|> <|user_start|> ...

A system message goes in front of the first user turn's text, with an empty line between. An assistant's turn may have parts:
text, a call of the Python tool, and what the tool printed.

    <|python_start|> code <|python_end|> <|output_start|> what it printed <|output_end|>

Loss is on what the assistant writes: its text, its calls with their two special tokens, and ``<|assistant_end|>``; not on
what opens its turn, and not on the tool's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.document import Document

Role = Literal["system", "user", "assistant"]
PartKind = Literal["text", "python", "output"]

KIND_NAMES: dict[str, PartKind] = {"text": "text", "python": "python", "output": "output", "python_output": "output"}
"""Names of a part's type in files, and what they are here."""


@dataclass(frozen=True)
class Part:
    """A stretch of one message: its text, code for the Python tool, or the tool's output."""

    kind: PartKind
    text: str


@dataclass(frozen=True)
class Message:
    """One turn. Only an assistant's has parts that are not text."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        """A turn of text alone."""
        return cls(role, (Part("text", text),))

    @property
    def text(self) -> str:
        """The text of the turn, without calls and outputs."""
        return "".join(part.text for part in self.parts if part.kind == "text")


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, source: str = "") -> Document:
    """A whole conversation for training: ids without BOS, and which of them carry loss.

    messages: system (at most one, first), then user and assistant in turns. Raises DataError where they are not.
    """
    pieces = list(_pieces(folded(messages), tokenizer))
    ids = np.array([i for ids, _ in pieces for i in ids], dtype=np.int64)
    mask = np.array([carries for ids, carries in pieces for _ in ids], dtype=bool)
    return Document(ids, mask, source)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids that ask for the next assistant turn: BOS, all turns, and ``<|assistant_start|>``.

    Raises DataError where the last message is not the user's.
    """
    turns = folded(messages)
    if turns[-1].role != "user":
        raise DataError("the last message is not the user's", hint="an answer is asked for after a user's message")
    body = [i for ids, _ in _pieces(turns, tokenizer) for i in ids]
    return [tokenizer.bos_id, *body, tokenizer.special_ids["<|assistant_start|>"]]


def folded(messages: Sequence[Message]) -> list[Message]:
    """Turns of user and assistant, with the system's text in the first user's. Raises DataError for another order."""
    turns = list(messages)
    if turns and turns[0].role == "system":
        system, *turns = turns
        if turns and turns[0].role == "user":
            turns[0] = Message.of("user", f"{system.text}\n\n{turns[0].text}")
    if not turns:
        raise DataError("the conversation has no turn", hint="it starts with a user's message")
    for place, turn in enumerate(turns):
        expected = "user" if place % 2 == 0 else "assistant"
        if turn.role != expected:
            raise DataError(
                f"message {place + len(messages) - len(turns)} is of the role {turn.role} where {expected} is due",
                hint="a system message may come first; then user and assistant take turns, the user first",
            )
        if turn.role == "user" and any(part.kind != "text" for part in turn.parts):
            raise DataError("a user's message has a tool's part", hint="only the assistant calls tools")
    return turns


def _pieces(turns: Sequence[Message], tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """(ids, whether they carry loss), in order."""
    special = tokenizer.special_ids
    for turn in turns:
        is_assistant = turn.role == "assistant"
        yield [special[f"<|{turn.role}_start|>"]], False
        for part in turn.parts:
            ids = tokenizer.encode(part.text)
            if part.kind != "text":
                ids = [special[f"<|{part.kind}_start|>"], *ids, special[f"<|{part.kind}_end|>"]]
            yield ids, is_assistant and part.kind != "output"
        yield [special[f"<|{turn.role}_end|>"]], is_assistant


def parse_messages(values: Any, *, where: str) -> tuple[Message, ...]:
    """Messages from JSON: a list of ``{"role", "content"}``; content is a text, or a list of ``{"type", "text"}`` parts.

    Raises DataError that names ``where`` and the message. The order of the roles is not looked at here; `folded` does.
    """
    if not isinstance(values, list) or not values:
        raise DataError(
            f"{where}: a conversation is a list of messages", hint='[{"role": "user", "content": "..."}, ...]'
        )
    return tuple(_parse_message(value, where=f"{where}, message {i}") for i, value in enumerate(values))


def _parse_message(value: Any, *, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} is no object", hint='{"role": "user", "content": "..."}')
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "user", "assistant"):
        raise DataError(f"{where}: the role {role!r} is not known", hint="one of system, user, assistant")
    if isinstance(content, str):
        return Message.of(role, content)
    if not isinstance(content, list) or not content:
        raise DataError(f"{where}: its content is neither a text nor a list of parts")
    parts = []
    for part in content:
        kind = KIND_NAMES.get(str(part.get("type"))) if isinstance(part, dict) else None
        if kind is None or not isinstance(part.get("text"), str):
            raise DataError(
                f"{where}: a part is not known", hint='{"type": "text", "python" or "python_output", "text": "..."}'
            )
        parts.append(Part(kind, part["text"]))
    return Message(role, tuple(parts))
