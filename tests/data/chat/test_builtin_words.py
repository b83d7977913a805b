"""Spelling and counting: right letter by letter, with words that are words."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import regex
from chat_entries import WORDS

from firstlight.data.chat.builtin_example import split_of
from firstlight.data.chat.builtin_words import counting, frequent_words, spelling, words_in
from firstlight.tokens.bpe import SPLIT_PATTERN


def test_words_in():
    text = "The first item of `code`, os.path and foo_bar or call(x), e.g. it's half-way; ends here. A word/pair, end."
    assert words_in(text) == ["first", "item", "and", "ends", "here", "end"]


def test_frequent_words_are_in_a_fixed_order_and_look_like_words():
    counts = Counter({"beta": 9, "alpha": 9, "gamma": 30, "rare": 3, "xyz": 50, "bcd": 50, "aaa": 50, "baaad": 50})
    assert frequent_words(counts) == ["xyz", "gamma", "alpha", "beta"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_spelling(split):
    examples = spelling(WORDS, split, 10_000)
    words = [re.search(r'"(\w+)"', example.messages[0].text)[1] for example in examples]
    assert sorted(words) == sorted(word for word in WORDS if split_of(f"word {word}") == split)
    for word, example in zip(words, examples, strict=True):
        assert example.messages[1].text.split(" - ") == list(word)
        assert example.answer == example.messages[1].text
        assert example.facts == (f"word {word}",)


def test_counting():
    examples = counting(WORDS, "train", 10_000)
    assert len(examples) > 80
    numbers = Counter()
    for example in examples:
        user, assistant = example.messages
        first, second = re.findall(r'"(\w+)"', user.text)
        word, letter = (first, second) if len(second) == 1 else (second, first)
        code, output, text = (part.text for part in assistant.parts)
        assert code == f'("{word}").count("{letter}")'
        number = sum(each == letter for each in word)
        assert (output, text, example.answer) == (str(number), f"#### {number}", str(number))
        numbers[number] += 1
    assert set(numbers) >= {0, 1, 2}


def test_no_word_is_drawn_twice():
    examples = counting(WORDS, "train", 60)
    assert len(examples) == len({example.facts for example in examples}) == 60


def test_a_word_has_the_same_ids_in_its_question_and_in_its_call():
    # The tokenizer merges only inside the pieces of its pattern; the word is one piece alone wherever it is asked or used.
    for examples in (spelling(WORDS, "train", 500), counting(WORDS, "train", 500)):
        for example in examples:
            word = example.facts[0].split()[1]
            for text in [example.messages[0].text, *(p.text for p in example.messages[1].parts if p.kind == "python")]:
                assert word in regex.findall(SPLIT_PATTERN, text)
