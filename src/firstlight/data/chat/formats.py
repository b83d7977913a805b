"""From one row of a file to a conversation: which form it has, and what is mended or refused. Text itself is never changed.

    messages      {"messages": [{"role": ..., "content": ...}, ...]}
    list          [{"role": ..., "content": ...}, ...]
    conversation  {"conversations": [...]} or {"conversation": [...]} of the same messages
    sharegpt      {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
    alpaca        {"instruction": ..., "input": ..., "output": ...}

The form is found by looking at the row, so one file may mix them. A row of form messages, conversation, sharegpt or alpaca
may have a text in ``system``, which comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.tokens.conversation import KIND_NAMES, Message, Part, Role

ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""Names of roles in files, and what they are here."""

LIST_FIELDS = ("messages", "conversations", "conversation")
ALPACA_FIELDS = ("instruction", "input", "output", "history")
FIELDS = (*LIST_FIELDS, *ALPACA_FIELDS, "system")
"""Fields of a row that are looked at; others are not read."""


class BadConversation(Exception):
    """A row that gives no conversation. reason: one of ``counts.SKIP_REASONS``; why: in words."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why


@dataclass(frozen=True)
class ReadRow:
    """A conversation that can be rendered, the form that it had, and messages that were mended, by kind."""

    messages: tuple[Message, ...]
    form: str
    changes: dict[str, int]


def read_row(row: Any) -> ReadRow:
    """The conversation in a row of JSON or Parquet. Raises BadConversation where there is none that can be trained on.

    What comes out begins with a system or user message, takes turns, and ends with the assistant's.
    """
    form, values = _messages_of(row)
    if not values:
        raise BadConversation("no_message", "has a conversation without a message")
    parsed = [_message(value, place) for place, value in enumerate(values)]
    changes: Counter[str] = Counter()
    messages = _mended(parsed, changes)
    return ReadRow(messages, form, dict(changes))


def _messages_of(row: Any) -> tuple[str, list[Any]]:
    if isinstance(row, list):
        return _form_of(row, "list"), row
    if not isinstance(row, dict):
        raise BadConversation("no_conversation", f"is a JSON {_kind(row)}, not an object or a list of messages")
    field = next((name for name in LIST_FIELDS if row.get(name) is not None), None)
    if field is not None:
        values = row[field]
        if not isinstance(values, list):
            raise BadConversation("no_conversation", f"has a {_kind(values)} in `{field}`, not a list of messages")
        return _form_of(values, "messages" if field == "messages" else "conversation"), _with_system(row, values)
    if row.get("instruction") is not None and row.get("output") is not None:
        return "alpaca", _with_system(row, _alpaca(row))
    fields = ", ".join(map(str, list(row)[:8])) or "(none)"
    raise BadConversation(
        "no_conversation",
        f"has neither `messages`, `conversations` or `conversation`, nor `instruction` and `output`; its fields are {fields}",
    )


def _form_of(values: list[Any], otherwise: str) -> str:
    return "sharegpt" if values and isinstance(values[0], dict) and "from" in values[0] else otherwise


def _with_system(row: dict[str, Any], values: list[Any]) -> list[Any]:
    system = row.get("system")
    return values if system is None else [{"role": "system", "content": system}, *values]


def _alpaca(row: dict[str, Any]) -> list[dict[str, Any]]:
    values = []
    for turn in row.get("history") or []:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise BadConversation("bad_message", "has a `history` that is not a list of pairs of question and answer")
        values += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked, given = row["instruction"], row.get("input")
    if given is not None and not isinstance(given, str):
        raise BadConversation("not_text", f"has a {_kind(given)} in `input`")
    if given and not given.isspace() and isinstance(asked, str):
        asked = f"{asked}\n\n{given}"
    return [*values, {"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]


def _message(value: Any, place: int) -> Message:
    where = f"message {place}"
    if not isinstance(value, dict):
        raise BadConversation("bad_message", f"{where} is a {_kind(value)}, not an object")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    if role_key not in value or content_key not in value:
        fields = ", ".join(map(str, list(value)[:8])) or "(none)"
        raise BadConversation("bad_message", f"{where} lacks `{role_key}` or `{content_key}`; its fields are {fields}")
    name, content = value[role_key], value[content_key]
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadConversation("wrong_role", f"{where} is of the role {name!r:.40}")
    if isinstance(content, str):
        message = Message.of(role, content)
    elif isinstance(content, list):
        message = Message(role, tuple(_part(part, where) for part in content))
    else:
        raise BadConversation("not_text", f"{where} has a {_kind(content)} as its content")
    if any(not _is_unicode(part.text) for part in message.parts):
        raise BadConversation("invalid_utf8", f"{where} holds half of a surrogate pair, which is not text")
    if role != "assistant" and any(part.kind != "text" for part in message.parts):
        raise BadConversation("tool_of_user", f"{where} is the {role}'s and has a tool's part")
    return message


def _part(value: Any, where: str) -> Part:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in KIND_NAMES or not isinstance(value.get("text"), str):
        raise BadConversation("not_text", f"{where} has a part that is no text, python or python_output")
    return Part(KIND_NAMES[kind], value["text"])


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mended(messages: Sequence[Message], changes: Counter[str]) -> tuple[Message, ...]:
    """Messages that take turns: one of a role in a row, a system's at most first, the assistant's last."""
    kept = []
    for place, message in enumerate(messages):
        if not _is_blank(message):
            kept.append(message)
        elif message.role == "system":
            changes["empty_system"] += 1
        else:
            raise BadConversation(f"empty_{message.role}", f"message {place} is the {message.role}'s and empty")
    turns: list[Message] = []
    for message in kept:
        if turns and turns[-1].role == message.role:
            turns[-1] = _joined(turns[-1], message)
            changes["joined"] += 1
        else:
            turns.append(message)
    system = turns[:1] if turns and turns[0].role == "system" else []
    turns = turns[len(system) :]
    if any(message.role == "system" for message in turns):
        raise BadConversation("late_system", "has a system message that is not the first")
    if turns and turns[0].role == "assistant":
        del turns[0]
        changes["leading_assistant"] += 1
    if turns and turns[-1].role == "user":
        del turns[-1]
        changes["trailing_user"] += 1
    if not turns:
        raise BadConversation("no_answer", "has no answer of the assistant to a user's message")
    return (*system, *turns)


def _is_blank(message: Message) -> bool:
    """No call, and no character but white space. (A tool's output alone is nothing that the assistant wrote.)"""
    return not any(part.kind == "python" for part in message.parts) and not message.text.strip()


def _joined(first: Message, second: Message) -> Message:
    between = [Part("text", "\n\n")] if first.parts[-1].kind == second.parts[0].kind == "text" else []
    return Message(first.role, (*first.parts, *between, *second.parts))


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = ((dict, "object"), (list, "list"), (str, "string"), ((int, float), "number"))
    return next((word for kind, word in kinds if isinstance(value, kind)), "null")
