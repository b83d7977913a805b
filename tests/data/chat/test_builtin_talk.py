"""Small talk: turns in order, nothing twice, facts of training alone."""

from __future__ import annotations

from chat_entries import made_up_entries

from firstlight.data.chat.builtin_example import split_of
from firstlight.data.chat.builtin_talk import talk
from firstlight.tokens.conversation import folded

ENTRIES = made_up_entries()


def test_talk():
    examples = talk(ENTRIES, 120)
    assert len(examples) == 120
    assert len({example.messages for example in examples}) == 120
    for example in examples:
        assert folded(example.messages)[-1].role == "assistant"
        assert example.answer is None
        assert all(split_of(fact) == "train" for fact in example.facts)
    replies = {message.text for example in examples for message in example.messages if message.role == "assistant"}
    assert "Hello! What would you like to know?" in replies
    assert any("a small language model trained by firstlight" in reply for reply in replies)


def test_the_same_every_time():
    assert talk(ENTRIES, 80) == talk(list(ENTRIES), 80)
