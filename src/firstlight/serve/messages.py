"""A chat request's messages to ids: OpenAI's roles and content parts to the turns that the model knows.

Differences that are smoothed: ``developer`` is ``system``; messages of one role in a row are one turn, joined by an empty
line; several system messages at the start are one. The last message may be the assistant's with ``"prefix": true``: the
answer then goes on behind it; its ``ids``, where given, are its exact tokens (a text may be cut into tokens in many ways).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.errors import ConfigError, DataError, FirstlightError
from firstlight.infer.chat import trim_history
from firstlight.serve.errors import bad_value, context_too_long, unsupported
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, parse_messages, render, render_prompt

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_MESSAGES = 4096


@dataclass(frozen=True)
class ChatPrompt:
    """ids: all that goes before the new text. prefix_ids: those of them that begin the answer. num_dropped: turns cut."""

    ids: tuple[int, ...]
    prefix_ids: tuple[int, ...] = ()
    num_dropped: int = 0


def read_messages(values: Sequence[Any]) -> tuple[Message, ...]:
    """Turns of a request's messages, joined where a role repeats. Raises ApiError (400)."""
    if not values:
        raise bad_value("messages is empty", param="messages", code="invalid_value")
    if len(values) > MAX_MESSAGES:
        raise bad_value(f"{len(values)} messages are too many: at most {MAX_MESSAGES}", param="messages")
    try:
        messages = parse_messages([_plain(value, i) for i, value in enumerate(values)], where="messages")
    except DataError as error:
        raise bad_value(in_one_line(error), param="messages", code="invalid_value") from None
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            between = Part("text", "\n\n")
            joined[-1] = Message(message.role, (*joined[-1].parts, between, *message.parts))
        else:
            joined.append(message)
    return tuple(Message(message.role, _merged(message.parts)) for message in joined)


def chat_prompt(
    values: Sequence[Any], tokenizer: Tokenizer, *, context: int, max_new_tokens: int, is_trimmed: bool
) -> ChatPrompt:
    """Ids that ask for the answer.

    context: tokens that the model reads at most. is_trimmed: drop the oldest turns where they do not fit (room is kept for
    ``max_new_tokens`` new ones); else a prompt that is too long is refused. Raises ApiError (400).
    """
    prefix_ids, values = _given_prefix(values, tokenizer)
    has_prefix = bool(values) and isinstance(values[-1], dict) and bool(values[-1].get("prefix"))
    messages = read_messages(values) if values else ()
    num_dropped = 0
    try:
        if has_prefix and prefix_ids is None:
            prefix_ids = _as_taught(messages[-1], tokenizer)
            messages = messages[:-1]
        prefix_ids = prefix_ids or ()
        left = context - len(prefix_ids)
        if is_trimmed and left > 0:
            messages, num_dropped = trim_history(messages, tokenizer, context=left, max_new_tokens=max_new_tokens)
        ids = (*render_prompt(messages, tokenizer), *prefix_ids)
    except (DataError, ConfigError) as error:
        code = "context_length_exceeded" if isinstance(error, ConfigError) else "invalid_value"
        raise bad_value(in_one_line(error), param="messages", code=code) from None
    if len(ids) > context:
        raise context_too_long(len(ids), context, param="messages")
    return ChatPrompt(ids, prefix_ids, num_dropped)


def in_one_line(error: FirstlightError) -> str:
    """What is wrong and what would be right, as one sentence."""
    return f"{error.what} ({error.hint})" if error.hint else error.what


def _as_taught(turn: Message, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of an assistant's turn as training renders them, without its start and end tokens."""
    asked = (Message.of("user", "?"),)
    ids = render((*asked, turn), tokenizer).ids.tolist()
    # A prompt has BOS in front, which a rendered conversation has not.
    return tuple(ids[len(render_prompt(asked, tokenizer)) - 1 : -1])


def _given_prefix(values: Sequence[Any], tokenizer: Tokenizer) -> tuple[tuple[int, ...] | None, Sequence[Any]]:
    """Exact ids of the answer's beginning, if the last message gives them, and the messages before it."""
    last = values[-1] if values else None
    if not isinstance(last, dict) or "ids" not in last or not last.get("prefix"):
        return None, values
    if last.get("role") != "assistant":
        raise bad_value("a message with ids is the assistant's, with prefix: true", param="messages")
    ids = last["ids"]
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids):
        raise bad_value(
            f"ids of the last message are no list of ids from 0 to {tokenizer.vocab_size - 1}", param="messages"
        )
    return tuple(ids), values[:-1]


def _plain(value: Any, place: int) -> Any:
    """One message with the roles and fields that `parse_messages` knows; what is not an object it refuses itself."""
    if not isinstance(value, dict):
        return value
    role = value.get("role")
    if role in ("tool", "function") or value.get("tool_calls") or value.get("function_call"):
        raise unsupported("messages", f"message {place} calls or answers a tool of the client's")
    if value.get("prefix") and role != "assistant":
        raise bad_value(f"message {place}: only an assistant's message can be a prefix", param="messages")
    known = ROLES.get(role) if isinstance(role, str) else None
    return {"role": known or role, "content": value.get("content")}


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbouring parts of text as one: a text has the same ids however it was sent."""
    merged: list[Part] = []
    for part in parts:
        if merged and merged[-1].kind == part.kind == "text":
            merged[-1] = Part("text", merged[-1].text + part.text)
        else:
            merged.append(part)
    return tuple(merged)
