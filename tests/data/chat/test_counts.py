"""What was read and skipped, in numbers and in words."""

from __future__ import annotations

import json

import pytest

from firstlight.data.chat.counts import EXAMPLES_OF_A_REASON, ConversationCounts


def test_a_few_examples_of_each_reason_are_kept() -> None:
    counts = ConversationCounts()
    for row in range(10):
        counts.skip("empty_user", f"a.jsonl:{row}", "is empty")
    counts.skip("no_answer", "b.jsonl:5", "has none")
    assert counts.skipped == {"empty_user": 10, "no_answer": 1}
    assert counts.num_skipped == 11
    assert EXAMPLES_OF_A_REASON == 3
    assert counts.examples == {
        "empty_user": ["a.jsonl:0 is empty", "a.jsonl:1 is empty", "a.jsonl:2 is empty"],
        "no_answer": ["b.jsonl:5 has none"],
    }


def test_in_words() -> None:
    counts = ConversationCounts()
    assert counts.describe() == []
    counts.skip("no_answer", "b.jsonl:5", "has none")
    counts.change({"joined": 3})
    counts.change({"joined": 1, "trailing_user": 2})
    said = "\n".join(counts.describe())
    assert "rows skipped: 1" in said
    assert "1 no_answer" in said
    assert "b.jsonl:5 has none" in said
    assert "joined: 4" in said
    assert "trailing_user: 2" in said


def test_as_json_and_back() -> None:
    counts = ConversationCounts(conversations=2, messages=5, text_bytes=9)
    counts.add_form("a", "list")
    counts.add_form("a", "list")
    counts.skip("no_message", "a:1", "x")
    assert ConversationCounts(**json.loads(json.dumps(counts.to_dict()))) == counts
    assert counts.forms == {"a": {"list": 2}}


def test_a_reason_that_is_not_listed_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        ConversationCounts().skip("whatever", "a:1", "x")
    with pytest.raises(AssertionError):
        ConversationCounts().change({"whatever": 1})
