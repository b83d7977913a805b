"""One stored line of builtin-chat, and the split of a fact."""

from __future__ import annotations

import json
from collections import Counter

from firstlight.data.chat.builtin_example import Example, ask, ask_with_tool, parse_line, split_of
from firstlight.tokens.conversation import Message, Part


def test_a_line_gives_its_example_back():
    for messages in (ask("Hé?", "Yes.", system="Be brief."), ask_with_tool("1+1?", "1+1", "2", "#### 2")):
        example = Example("docs", "does open", messages, "Yes.", ("doc os walk",))
        line = example.to_line()
        assert "\n" not in line
        assert parse_line(line, where="x") == example


def test_the_stored_form_is_the_general_one():
    value = json.loads(Example("docs", "t", ask_with_tool("1+1?", "1+1", "2", "#### 2"), "2", ()).to_line())
    assert value["messages"] == [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "1+1"},
                {"type": "output", "text": "2"},
                {"type": "text", "text": "#### 2"},
            ],
        },
    ]


def test_messages_of_a_question():
    assert ask("a", "b", system="s") == (
        Message.of("system", "s"),
        Message.of("user", "a"),
        Message.of("assistant", "b"),
    )
    assert ask_with_tool("a", "c", "o", "t")[1] == Message(
        "assistant", (Part("python", "c"), Part("output", "o"), Part("text", "t"))
    )


def test_the_split_of_a_fact_has_its_shares_and_does_not_change():
    shares = Counter(split_of(f"word {i}") for i in range(20_000))
    # 12 % and 6 % of 20,000; five standard deviations are 230 and 168.
    assert abs(shares["test"] - 2_400) < 230
    assert abs(shares["val"] - 1_200) < 168
    # `printf 'word a' | sha256sum` begins with a number that is 50 modulo 100; c: 12, e: 7.
    assert [split_of(f"word {letter}") for letter in "ace"] == ["train", "val", "test"]
