"""Claims of serve/messages.py: OpenAI's messages become the ids that training would give the same conversation."""

from __future__ import annotations

from typing import Any

import pytest

from firstlight.serve.errors import ApiError
from firstlight.serve.messages import ChatPrompt, chat_prompt, read_messages
from firstlight.tokens.conversation import Message, Part
from tests.serve.helpers import make_tokenizer

TOKENIZER = make_tokenizer()
BOS, USER, USER_END, ASSISTANT, END = (
    TOKENIZER.special_ids[f"<|{name}|>"]
    for name in ("bos", "user_start", "user_end", "assistant_start", "assistant_end")
)
PYTHON, PYTHON_END = TOKENIZER.special_ids["<|python_start|>"], TOKENIZER.special_ids["<|python_end|>"]


def prompt(
    messages: list[Any], *, context: int = 200, max_new_tokens: int = 10, is_trimmed: bool = False
) -> ChatPrompt:
    return chat_prompt(messages, TOKENIZER, context=context, max_new_tokens=max_new_tokens, is_trimmed=is_trimmed)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def test_a_conversation_has_the_ids_written_down_by_hand() -> None:
    found = prompt([{"role": "system", "content": "S"}, user("x"), assistant("y"), user("z")])
    expected = [BOS, USER, *b"S\n\nx", USER_END, ASSISTANT, *b"y", END, USER, *b"z", USER_END, ASSISTANT]
    assert found == ChatPrompt(tuple(expected))


def test_a_developer_is_the_system_and_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = prompt([{"role": "developer", "content": "S"}, {"role": "user", "content": parts, "name": "me"}])
    assert found.ids == (BOS, USER, *b"S\n\nab", USER_END, ASSISTANT)


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    assert read_messages([user("a"), user("b")]) == (Message.of("user", "a\n\nb"),)
    assert prompt([user("a"), user("b")]).ids == (BOS, USER, *b"a\n\nb", USER_END, ASSISTANT)


def test_an_answer_goes_on_behind_its_beginning() -> None:
    found = prompt([user("x"), assistant("yz", prefix=True)])
    assert found.ids == (BOS, USER, *b"x", USER_END, ASSISTANT, *b"yz")
    assert found.prefix_ids == tuple(b"yz")


def test_an_open_call_of_the_tool_can_go_on_by_its_ids() -> None:
    ids = [65, PYTHON, 49]
    found = prompt([user("x"), assistant("", prefix=True, ids=ids)])
    assert found.ids[-3:] == tuple(ids)
    assert found.prefix_ids == tuple(ids)


def test_calls_of_the_tool_in_the_history_are_as_in_training() -> None:
    said = [{"type": "text", "text": "a"}, {"type": "python", "text": "1"}]
    found = prompt([user("x"), {"role": "assistant", "content": said}, user("y")])
    assert found.ids[4:10] == (ASSISTANT, 97, PYTHON, 49, PYTHON_END, END)
    assert read_messages([user("x"), {"role": "assistant", "content": said}])[1].parts == (
        Part("text", "a"),
        Part("python", "1"),
    )


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["text"],
        [5],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "user", "content": [5]}],
        [{"role": "king", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [user("x"), assistant("", tool_calls=[{"id": "1"}])],
        [assistant("x"), user("y")],
        [user("x"), assistant("y")],
        [user("x"), {"role": "system", "content": "y"}],
        [{"role": "system", "content": "y"}],
        [user("x") | {"prefix": True}],
        [assistant("x", prefix=True)],
        [user("x"), assistant("", prefix=True, ids="a")],
        [user("x"), assistant("", prefix=True, ids=[True])],
        [user("x"), assistant("", prefix=True, ids=[-1])],
        [user("x"), assistant("", prefix=True, ids=[10**9])],
        [user("x"), user("y") | {"prefix": True, "ids": [1]}],
        [user("x"), assistant("", prefix=True, ids=[1]), user("z"), assistant("w")],
        [user("x")] * 5000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_trimmed", [False, True])
def test_what_is_no_conversation_is_refused(messages: list[Any], is_trimmed: bool) -> None:
    with pytest.raises(ApiError) as caught:
        prompt(messages, is_trimmed=is_trimmed)
    assert caught.value.status == 400
    assert caught.value.param == "messages"


def test_a_conversation_that_is_too_long_is_refused_as_openai_does() -> None:
    # BOS, start, end, and the assistant's start are 4 more.
    assert len(prompt([user("x" * 196)]).ids) == 200
    for messages in ([user("x" * 197)], [user("x"), assistant("y" * 300, prefix=True)]):
        with pytest.raises(ApiError) as caught:
            prompt(messages)
        assert caught.value.code == "context_length_exceeded"
    assert "201 tokens" in str(refused([user("x" * 197)]))


def refused(messages: list[Any], **changes: Any) -> str:
    with pytest.raises(ApiError) as caught:
        prompt(messages, **changes)
    return caught.value.message


def test_with_truncation_the_oldest_turns_go_and_the_system_stays() -> None:
    messages = [{"role": "system", "content": "S"}]
    for i in range(10):
        messages += [user(f"q{i}" + "x" * 20), assistant(f"a{i}" + "y" * 20)]
    found = prompt([*messages, user("last")], is_trimmed=True)
    text = TOKENIZER.decode(found.ids)
    assert found.num_dropped > 0
    assert len(found.ids) <= 200 + 1 - 10
    assert text.startswith("<|bos|><|user_start|>S\n\nq")
    assert f"q{found.num_dropped}" in text
    assert f"q{found.num_dropped - 1}" not in text


def test_one_message_that_is_too_long_cannot_be_trimmed() -> None:
    with pytest.raises(ApiError) as caught:
        prompt([user("x" * 300)], is_trimmed=True)
    assert caught.value.code == "context_length_exceeded"
