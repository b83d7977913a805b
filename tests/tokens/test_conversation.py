"""Conversations as ids: the table written by hand, prompts, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from chat_masks import TABLE, expected, json_messages

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, folded, parse_messages, pieces, render, render_prompt


def user(text: str) -> Message:
    return Message.of("user", text)


def assistant(text: str) -> Message:
    return Message.of("assistant", text)


def test_the_table_has_fifty_conversations() -> None:
    assert len({entry["name"] for entry in TABLE}) == 50


@pytest.mark.parametrize("entry", TABLE, ids=[entry["name"] for entry in TABLE])
def test_ids_and_loss_are_as_written_down(entry: dict, tokenizer: Tokenizer) -> None:
    document = render(parse_messages(json_messages(entry), where="table"), tokenizer, source="here")
    ids, mask = expected(entry, tokenizer)
    assert document.ids.tolist() == ids
    assert document.loss_mask is not None
    assert document.loss_mask.tolist() == mask
    assert document.ids.dtype == np.int64
    assert document.loss_mask.dtype == bool
    assert document.source == "here"


@pytest.mark.parametrize("entry", TABLE, ids=[entry["name"] for entry in TABLE])
def test_a_prompt_is_the_beginning_of_what_was_trained_on(entry: dict, tokenizer: Tokenizer) -> None:
    """A model is asked with exactly the ids that stood before the answer in training, BOS in front."""
    ids, _ = expected(entry, tokenizer)
    assistant_start = tokenizer.special_ids["<|assistant_start|>"]
    last = max(place for place, i in enumerate(ids) if i == assistant_start)
    asked = parse_messages(json_messages(entry)[:-1], where="table")
    assert render_prompt(asked, tokenizer) == [tokenizer.bos_id, *ids[: last + 1]]


def test_a_prompt_of_two_turns_by_hand(byte_ids: Tokenizer) -> None:
    got = render_prompt([user("a"), assistant("b"), user("c")], byte_ids)
    assert got == [256, 257, 97, 258, 259, 98, 260, 257, 99, 258, 259]


@pytest.fixture(scope="module")
def byte_ids() -> Tokenizer:
    """Ids 0 to 255 are the bytes, 256 is BOS, 257 begins a user's turn, 258 ends it, 259 and 260 the assistant's."""
    return Tokenizer([bytes([b]) for b in range(256)])


def test_text_never_gives_a_special_id(byte_ids: Tokenizer) -> None:
    names = "".join(byte_ids.special_ids)
    document = render([Message.of("system", names), user(names), assistant(names)], byte_ids)
    special = [i for i in document.ids.tolist() if i >= 256]
    assert special == [257, 258, 259, 260]


def test_the_system_message_may_have_parts_and_the_user_too(byte_ids: Tokenizer) -> None:
    system = Message("system", (Part("text", "s"), Part("text", "t")))
    asked = Message("user", (Part("text", "u"), Part("text", "v")))
    assert bytes(render([system, asked, assistant("w")], byte_ids).ids[1:6].tolist()) == b"st\n\nu"


def test_the_loss_is_of_the_assistant_only(byte_ids: Tokenizer) -> None:
    """users.md 61: not a single id of the user, nor what opens a turn; and not everything, either."""
    document = render([user("abc"), assistant("de")], byte_ids)
    assert document.loss_mask is not None
    assert document.ids[document.loss_mask].tolist() == [100, 101, 260]


def test_pieces_spell_the_conversation() -> None:
    found = list(pieces([user("a"), assistant("b")]))
    assert [piece.text for piece in found] == [
        "<|user_start|>", "a", "<|user_end|>", "<|assistant_start|>", "b", "<|assistant_end|>",
    ]  # fmt: skip
    assert [piece.carries_loss for piece in found] == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no turn"),
        ([Message.of("system", "s")], "no turn"),
        ([assistant("a")], "message 0 is of the role assistant where user is due"),
        ([Message.of("system", "s"), assistant("a")], "message 1 is of the role assistant where user is due"),
        ([user("a"), user("b")], "message 1 is of the role user where assistant is due"),
        ([user("a"), assistant("b"), assistant("c")], "message 2 is of the role assistant where user is due"),
        ([user("a"), Message.of("system", "s")], "message 1 is of the role system where assistant is due"),
        ([Message("user", (Part("python", "1"),)), assistant("b")], "a user's message has a tool's part"),
        ([Message.of("system", "s"), Message("user", (Part("output", "1"),))], "a user's message has a tool's part"),
        ([Message("system", (Part("python", "1"),)), user("a")], "a system's message has a tool's part"),
    ],
)
def test_another_order_is_refused(messages: list[Message], words: str, byte_ids: Tokenizer) -> None:
    with pytest.raises(DataError, match=words):
        folded(messages)
    with pytest.raises(DataError, match=words):
        render(messages, byte_ids)


def test_an_answer_is_asked_for_after_a_user_only(byte_ids: Tokenizer) -> None:
    with pytest.raises(DataError, match="the last message is not the user's"):
        render_prompt([user("a"), assistant("b")], byte_ids)


def test_a_lone_surrogate_is_no_text(byte_ids: Tokenizer) -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        render([user("\ud800"), assistant("a")], byte_ids)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "h: a conversation is a list of messages"),
        ([], "h: a conversation is a list of messages"),
        ({"role": "user"}, "h: a conversation is a list of messages"),
        (["hi"], "h, message 0 is no object"),
        ([{"role": "robot", "content": "x"}], "h, message 0: the role 'robot' is not known"),
        ([{"role": ["user"], "content": "x"}], "is not known"),
        ([{"role": "user"}], "its content is neither a text nor a list of parts"),
        ([{"role": "user", "content": 5}], "its content is neither"),
        ([{"role": "user", "content": []}], "its content is neither"),
        ([{"role": "user", "content": ["hi"]}], "a part is not known"),
        ([{"role": "user", "content": [{"type": "image", "text": "x"}]}], "a part is not known"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a part is not known"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "text"}]}], "message 1"),
    ],
)
def test_what_are_no_messages_is_refused(values: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_messages(values, where="h")


def test_messages_from_json() -> None:
    values = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "python", "text": "b"}, {"type": "output", "text": "c"}]},
    ]
    assert parse_messages(values, where="h") == (
        user("a"),
        Message("assistant", (Part("python", "b"), Part("output", "c"))),
    )


def test_the_text_of_a_message_is_without_calls() -> None:
    parts = (Part("text", "a"), Part("python", "b"), Part("output", "c"), Part("text", "d"))
    assert Message("assistant", parts).text == "ad"
