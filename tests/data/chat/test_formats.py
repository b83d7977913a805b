"""One row to one conversation: each form, each mending, each reason to refuse."""

from __future__ import annotations

from typing import Any

import pytest

from firstlight.data.chat.counts import SKIP_REASONS
from firstlight.data.chat.formats import BadConversation, read_row
from firstlight.tokens.conversation import Message, Part

U = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
QA = (Message.of("user", "q"), Message.of("assistant", "a"))


def plain(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    assert all(part.kind == "text" for message in messages for part in message.parts)
    return [(message.role, message.text) for message in messages]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [U, A]}, "messages"),
        ([U, A], "list"),
        ({"conversations": [U, A]}, "conversation"),
        ({"conversation": [U, A]}, "conversation"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "bot", "value": "a"}]}, "sharegpt"),
        ([{"from": "human", "value": "q"}, {"from": "model", "value": "a"}], "sharegpt"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": " \n", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": None, "output": "a", "text": "not read"}, "alpaca"),
        ({"messages": [U, A], "instruction": "x", "output": "y"}, "messages"),
        ({"messages": None, "conversations": [U, A]}, "conversation"),
        ({"id": 7, "messages": [{**U, "name": "x"}, A]}, "messages"),
    ],
)
def test_the_form_is_found_by_looking(row: Any, form: str) -> None:
    read = read_row(row)
    assert (read.form, read.messages, read.changes) == (form, QA, {})


def test_alpaca_with_all_its_fields() -> None:
    row = {"system": "s", "history": [["q0", "a0"]], "instruction": "q", "input": "i", "output": "a"}
    assert plain(read_row(row).messages) == [
        ("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q\n\ni"), ("assistant", "a"),
    ]  # fmt: skip


def test_a_system_text_beside_the_messages() -> None:
    row = {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert plain(read_row(row).messages) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_parts_are_kept() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "python", "text": "y"}, {"type": "python_output", "text": "z"}]
    got = read_row([U, {"role": "assistant", "content": parts}]).messages[1]
    assert got.parts == (Part("text", "x"), Part("python", "y"), Part("output", "z"))


def test_text_is_not_touched() -> None:
    text = " \t<|user_end|> a\r\n\n🐕  "
    assert plain(read_row([{"role": "user", "content": text}, A]).messages)[0] == ("user", text)


@pytest.mark.parametrize(
    ("row", "messages", "changes"),
    [
        ([U, U, A], [("user", "q\n\nq"), ("assistant", "a")], {"joined": 1}),
        ([U, A, A, A], [("user", "q"), ("assistant", "a\n\na\n\na")], {"joined": 2}),
        ([S, S, U, A], [("system", "s\n\ns"), ("user", "q"), ("assistant", "a")], {"joined": 1}),
        ([A, U, A], [("user", "q"), ("assistant", "a")], {"leading_assistant": 1}),
        ([S, A, U, A], [("system", "s"), ("user", "q"), ("assistant", "a")], {"leading_assistant": 1}),
        ([U, A, U], [("user", "q"), ("assistant", "a")], {"trailing_user": 1}),
        ([A, U, A, U], [("user", "q"), ("assistant", "a")], {"leading_assistant": 1, "trailing_user": 1}),
        ([{**S, "content": " "}, U, A], [("user", "q"), ("assistant", "a")], {"empty_system": 1}),
        ([U, {**S, "content": ""}, A], [("user", "q"), ("assistant", "a")], {"empty_system": 1}),
    ],
)
def test_what_is_mended(row: list, messages: list, changes: dict) -> None:
    read = read_row(row)
    assert plain(read.messages) == messages
    assert read.changes == changes


def test_two_answers_with_calls_are_joined_without_an_empty_line() -> None:
    call = {"role": "assistant", "content": [{"type": "python", "text": "1"}]}
    assert read_row([U, A, call]).messages[1].parts == (Part("text", "a"), Part("python", "1"))
    assert read_row([U, call, A]).messages[1].parts == (Part("python", "1"), Part("text", "a"))


BAD = [
    ("no_conversation", 5, "JSON number"),
    ("no_conversation", "text", "JSON string"),
    ("no_conversation", None, "JSON null"),
    ("no_conversation", True, "JSON boolean"),
    ("no_conversation", {}, r"its fields are \(none\)"),
    ("no_conversation", {"text": "x", "id": 1}, "its fields are text, id"),
    ("no_conversation", {"instruction": "x"}, "its fields are instruction"),
    ("no_conversation", {"messages": "x"}, "string in `messages`"),
    ("no_conversation", {"messages": {"role": "user"}}, "object in `messages`"),
    ("no_message", [], "without a message"),
    ("no_message", {"messages": []}, "without a message"),
    ("bad_message", ["hi", "there"], "message 0 is a string"),
    ("bad_message", [U, {"role": "assistant"}], "message 1 lacks `role` or `content`; its fields are role"),
    ("bad_message", [{"from": "human", "content": "x"}], "lacks `from` or `value`"),
    ("bad_message", {"instruction": "q", "output": "a", "history": ["q0"]}, "history"),
    ("wrong_role", [U, {"role": "tool", "content": "x"}], "message 1 is of the role 'tool'"),
    ("wrong_role", [{"role": None, "content": "x"}], "role None"),
    ("wrong_role", [{"role": ["user"], "content": "x"}], "role"),
    ("wrong_role", [{"role": "USER", "content": "x"}], "role 'USER'"),
    ("not_text", [U, {"role": "assistant", "content": None}], "message 1 has a null"),
    ("not_text", [{"role": "user", "content": 5}, A], "message 0 has a number"),
    ("not_text", [{"role": "user", "content": {"text": "x"}}, A], "has a object"),
    ("not_text", [{"role": "user", "content": [{"type": "image_url"}]}, A], "part that is no text"),
    ("not_text", [{"role": "user", "content": ["x"]}, A], "part that is no text"),
    ("not_text", [{"role": "user", "content": [{"type": "text", "text": 1}]}, A], "part that is no text"),
    ("not_text", {"instruction": "q", "input": 5, "output": "a"}, "number in `input`"),
    ("not_text", {"instruction": ["q"], "input": "i", "output": "a"}, "message 0 has a list|part that is no text"),
    ("not_text", {"messages": [U, A], "system": 5}, "message 0 has a number"),
    ("empty_user", [{"role": "user", "content": ""}, A], "message 0 is the user's and empty"),
    ("empty_user", [{"role": "user", "content": " \n"}, A], "message 0"),
    ("empty_user", [{"role": "user", "content": []}, A], "message 0"),
    ("empty_assistant", [U, {"role": "assistant", "content": ""}], "message 1 is the assistant's and empty"),
    ("empty_assistant", [U, {"role": "assistant", "content": "\t\n "}], "message 1"),
    ("empty_assistant", {"instruction": "q", "output": ""}, "message 1"),
    ("empty_assistant", [U, {"role": "assistant", "content": [{"type": "output", "text": "4"}]}], "message 1"),
    ("tool_of_user", [{"role": "user", "content": [{"type": "python", "text": "1"}]}, A], "the user's"),
    ("tool_of_user", [{"role": "system", "content": [{"type": "output", "text": "1"}]}, U, A], "the system's"),
    ("late_system", [U, S, A], "not the first"),
    ("late_system", [U, A, S, U, A], "not the first"),
    ("no_answer", [U], "no answer"),
    ("no_answer", [S, U], "no answer"),
    ("no_answer", [A], "no answer"),
    ("no_answer", [A, U], "no answer"),
    ("no_answer", [S], "no answer"),
    ("invalid_utf8", [{"role": "user", "content": "\ud83d"}, A], "message 0 holds half of a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row", "words"), BAD, ids=[f"{each[0]} {i}" for i, each in enumerate(BAD)])
def test_what_is_refused_and_why(reason: str, row: Any, words: str) -> None:
    with pytest.raises(BadConversation, match=words) as caught:
        read_row(row)
    assert caught.value.reason == reason


def test_every_reason_is_in_the_table_above() -> None:
    assert {reason for reason, _, _ in BAD} == SKIP_REASONS.keys() - {"invalid_json"}
