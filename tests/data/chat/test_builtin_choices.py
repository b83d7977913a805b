"""Multiple choice: one right letter, under each letter equally often."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from chat_entries import WORDS, made_up_entries

from firstlight.data.chat.builtin_choices import choices
from firstlight.data.chat.builtin_example import split_of

ENTRIES = made_up_entries()
ALL = {"raises": 10_000, "name": 10_000, "does": 10_000, "word": 10_000}


def is_right_choice(task, question, choice):
    """Told from the question alone, by what the made-up functions are called and do."""
    if task == "word":
        return choice == re.search(r"spelled ([a-z -]+)\?", question)[1].replace(" - ", "")
    if task == "raises":
        return f"Raises {choice}:" in question
    name, sentence = (choice, question) if task == "name" else (re.search(r"`[^`]+`", question)[0], choice)
    words = set(re.findall(r"[a-z]+", sentence.lower()))
    parts = re.findall(r"[a-z]+", re.sub(r"([A-Z])", r" \1", name).lower())
    return set(parts) <= words


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_choice_is_right(split):
    examples = choices(ENTRIES, WORDS, split, ALL)
    assert {example.task for example in examples} == set(ALL)
    for example in examples:
        prompt = example.messages[0].text
        shown = re.findall(r"^([A-D])\. (.*)$", prompt, re.MULTILINE)
        question = prompt[: prompt.index("\nA. ")]
        assert [letter for letter, _ in shown] == list("ABCD")
        assert [letter for letter, text in shown if is_right_choice(example.task, question, text)] == [example.answer]
        assert example.messages[1].text == example.answer
        assert prompt.endswith("\nAnswer with the letter only.")
        assert {split_of(fact) for fact in example.facts} == {split}


def test_the_letters_are_balanced_in_each_task():
    examples = choices(ENTRIES, WORDS, "train", {"raises": 20, "name": 40, "does": 40, "word": 40})
    for task, count in (("raises", 5), ("name", 10), ("does", 10), ("word", 10)):
        assert Counter(e.answer for e in examples if e.task == task) == dict.fromkeys("ABCD", count)


def test_the_same_every_time():
    assert choices(ENTRIES, WORDS, "val", ALL) == choices(list(ENTRIES), list(WORDS), "val", ALL)
