"""A conversation as ids: one way for training and for asking, so that a model is asked as it was taught.

    <|bos|> <|user_start|> text <|user_end|> <|assistant_start|> text <|assistant_end|> <|user_start|> ...

A system message goes in front of the first user turn's text, with an empty line between. An assistant's turn may have parts:
text, a call of the Python tool, and what the tool printed. Texts that follow each other in one turn are one text.

    <|python_start|> code <|python_end|> <|output_start|> what it printed <|output_end|>

Loss is on what the assistant writes: its text, its calls with their two special tokens, and ``<|assistant_end|>``; not on
what opens its turn, and not on the tool's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.document import Document

RENDER_VERSION = 1
"""Changes with what ids a conversation gets, so that ids that were kept are made anew."""

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


class Piece(NamedTuple):
    """A stretch of a rendered conversation: a text, or the name of one special token; and whether its ids carry loss."""

    text: str
    is_special: bool
    carries_loss: bool


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, source: str = "") -> Document:
    """A whole conversation for training: ids without BOS, and which of them carry loss.

    messages: system (at most one, first), then user and assistant in turns. Raises DataError where they are not.
    """
    encoded = [(_ids(piece, tokenizer), piece.carries_loss) for piece in pieces(messages)]
    ids = np.array([i for ids, _ in encoded for i in ids], dtype=np.int64)
    mask = np.array([carries for ids, carries in encoded for _ in ids], dtype=bool)
    return Document(ids, mask, source)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids that ask for the next assistant turn: BOS, all turns, and ``<|assistant_start|>``.

    Raises DataError where the last message is not the user's.
    """
    turns = folded(messages)
    if turns[-1].role != "user":
        raise DataError("the last message is not the user's", hint="an answer is asked for after a user's message")
    body = [i for piece in _pieces(turns) for i in _ids(piece, tokenizer)]
    return [tokenizer.bos_id, *body, tokenizer.special_ids["<|assistant_start|>"]]


def pieces(messages: Sequence[Message]) -> Iterator[Piece]:
    """The stretches of a whole conversation in order, without BOS. Raises DataError as `folded` does."""
    return _pieces(folded(messages))


def folded(messages: Sequence[Message]) -> list[Message]:
    """Turns of user and assistant, with the system's text in the first user's. Raises DataError for another order."""
    turns = list(messages)
    for turn in turns:
        if turn.role != "assistant" and any(part.kind != "text" for part in turn.parts):
            raise DataError(f"a {turn.role}'s message has a tool's part", hint="only the assistant calls tools")
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
    return turns


def _pieces(turns: Sequence[Message]) -> Iterator[Piece]:
    for turn in turns:
        is_assistant = turn.role == "assistant"
        yield Piece(f"<|{turn.role}_start|>", True, False)
        for kind, group in groupby(turn.parts, key=lambda part: part.kind):
            parts = list(group)
            if kind == "text":
                text = parts[0].text if len(parts) == 1 else "".join(part.text for part in parts)
                yield Piece(text, False, is_assistant)
                continue
            carries = kind != "output"  # the tool writes its output, not the model
            for part in parts:
                yield Piece(f"<|{kind}_start|>", True, carries)
                yield Piece(part.text, False, carries)
                yield Piece(f"<|{kind}_end|>", True, carries)
        yield Piece(f"<|{turn.role}_end|>", True, is_assistant)


def _ids(piece: Piece, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special_ids[piece.text]] if piece.is_special else tokenizer.encode(piece.text)


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
