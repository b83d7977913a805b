"""Spelling and counting letters, with the frequent words of the documentation itself.

    user: Spell the word "cat".
    assistant: c - a - t

    user: How many "r" are in "strawberry"?
    assistant: <|python_start|>("strawberry").count("r")<|python_end|><|output_start|>3<|output_end|>#### 3

A word stands between double quotes with a blank or a bracket in front of them. There the tokenizer's pattern parts it
from its quotes, so it has the same ids in the question and in the call (``'strawberry'`` would not: ``'s`` is a
contraction to the pattern). It is cut into smaller pieces than after a blank, whose letters are learned from many words.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from firstlight.data.chat.builtin_answers import final_line, spelled
from firstlight.data.chat.builtin_example import Example, Split, ask, ask_with_tool, split_of

MAX_WORDS = 9_000
MIN_COUNT = 4
"""In how many docstrings a word must be, to be one of the words."""
_WORD = re.compile(r"(?<![\w`./:@\\'-])[a-z]{3,12}(?![\w`/:@\\'(-]|\.\w)")
_VOWELS = frozenset("aeiouy")

SPELL = (
    'Spell the word "{word}".',
    'How do you spell "{word}"?',
    'Spell "{word}".',
    'What are the letters of "{word}"?',
    'Give the letters of the word "{word}".',
)
COUNT = (
    'How many "{letter}" are in "{word}"?',
    'How often is the letter "{letter}" in "{word}"?',
    'Count the letter "{letter}" in the word "{word}".',
    'How many times does "{letter}" occur in "{word}"?',
)
PRESENT_FRAC = 0.85
"""Share of the counting questions whose letter is in the word."""


def words_in(text: str) -> list[str]:
    """Words of lower case that could be asked: no names of code, no part of a longer word."""
    return _WORD.findall(text)


def frequent_words(counts: Counter[str]) -> list[str]:
    """The words to ask about, most frequent first; ties by the alphabet, so that the order is fixed."""
    good = [word for word, count in counts.items() if count >= MIN_COUNT and _is_word(word)]
    return sorted(good, key=lambda word: (-counts[word], word))[:MAX_WORDS]


def _is_word(word: str) -> bool:
    return bool(_VOWELS & set(word)) and len(set(word)) > 1 and not re.search(r"(.)\1\1", word)


def word_name(word: str) -> str:
    """Name of the fact that a word is."""
    return f"word {word}"


def words_of_split(words: list[str], split: Split) -> list[str]:
    """Those words that belong to a split, in their order."""
    return [word for word in words if split_of(word_name(word)) == split]


def spelling(words: list[str], split: Split, count: int) -> list[Example]:
    """Up to ``count`` questions for the letters of a word."""
    rng = random.Random(f"builtin-chat spelling {split}")
    return [
        Example(
            "spelling", "spell", ask(rng.choice(SPELL).format(word=word), spelled(word)), spelled(word), (word_name(word),)
        )
        for word in _drawn(words_of_split(words, split), count, rng)
    ]  # fmt: skip


def counting(words: list[str], split: Split, count: int) -> list[Example]:
    """Up to ``count`` questions for how often a letter is in a word."""
    rng = random.Random(f"builtin-chat counting {split}")
    found = []
    for word in _drawn(words_of_split(words, split), count, rng):
        letter = rng.choice(word if rng.random() < PRESENT_FRAC else "abcdefghijklmnopqrstuvwxyz")
        number = str(word.count(letter))
        user = rng.choice(COUNT).format(word=word, letter=letter)
        messages = ask_with_tool(user, f'("{word}").count("{letter}")', number, final_line(number))
        found.append(Example("counting", "count", messages, number, (word_name(word),)))
    return found


def _drawn(words: list[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of the words, none twice."""
    return rng.sample(words, min(count, len(words)))
