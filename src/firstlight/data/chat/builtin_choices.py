"""Multiple choice, in the one wording that evaluation has (`tokens.choices`): the answer is one letter.

The right choice stands under each letter equally often, and its distractors are of its own split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from firstlight.data.chat.builtin_answers import normalised, spelled
from firstlight.data.chat.builtin_docs import Asked, entry_name, excerpt, of_split, questions_about, subject
from firstlight.data.chat.builtin_example import Example, Split, ask
from firstlight.data.chat.builtin_reading import Entry
from firstlight.data.chat.builtin_words import word_name, words_of_split
from firstlight.tokens.choices import LETTERS, choices_prompt

NUM_CHOICES = 4
MAX_CHOICE_CHARS = 60
MAX_DRAWS = 1_000
EXCEPTIONS = (
    "ValueError", "TypeError", "KeyError", "IndexError", "RuntimeError", "AttributeError", "NotImplementedError",
    "NetworkXError", "OSError", "ImportError", "LinAlgError", "ZeroDivisionError",
)  # fmt: skip


def choices(entries: list[Entry], words: list[str], split: Split, limits: dict[str, int]) -> list[Example]:
    """Questions of a split; at most ``limits[task]`` of each task: raises, name, does, word."""
    entries = of_split(entries, split)
    return [
        *_exceptions(entries, split, limits["raises"]),
        *_names(entries, split, limits["name"]),
        *_sentences(entries, split, limits["does"]),
        *_spelled_words(words_of_split(words, split), split, limits["word"]),
    ]


def _example(task: str, question: str, right: str, wrong: Sequence[str], place: int, facts: tuple[str, ...]) -> Example:
    """place: where the right choice stands."""
    shown = [*wrong[:place], right, *wrong[place:]]
    letter = LETTERS[place]
    return Example("choice", task, ask(choices_prompt(question, shown), letter), letter, facts)


def _places(count: int, rng: random.Random) -> Iterator[int]:
    """Places of the right choices: each equally often, in a mixed order."""
    places = [i % NUM_CHOICES for i in range(count)]
    rng.shuffle(places)
    yield from places


def _rng(task: str, split: Split) -> random.Random:
    return random.Random(f"builtin-chat choice {task} {split}")


def _exceptions(entries: list[Entry], split: Split, count: int) -> list[Example]:
    rng = _rng("raises", split)
    pool: list[tuple[Entry, Asked]] = [
        (entry, asked)
        for entry in entries
        for asked in questions_about(entry)
        if asked.task == "raises" and len(excerpt(entry, asked)) <= 400
    ]
    count = min(count, len(pool))
    found = []
    for (entry, asked), place in zip(rng.sample(pool, count), _places(count, rng), strict=True):
        wrong = rng.sample([name for name in EXCEPTIONS if name != asked.name], NUM_CHOICES - 1)
        question = f"{excerpt(entry, asked)}\n\nWhich exception does `{entry.name}` raise?"
        found.append(_example("raises", question, asked.name, wrong, place, (entry_name(entry),)))
    return found


def _names(entries: list[Entry], split: Split, count: int) -> list[Example]:
    rng = _rng("name", split)
    pool = [entry for entry in entries if len(entry.name) <= 30 and len(entry.facts.does) <= 100]
    of_kind = {is_class: [entry for entry in pool if entry.is_class == is_class] for is_class in (False, True)}
    count = min(count, len(pool))
    found = []
    for entry, place in zip(rng.sample(pool, count), _places(count, rng), strict=True):
        if not (wrong := _others(entry, of_kind[entry.is_class], rng)):
            continue
        kind = "class" if entry.is_class else "function"
        question = f"Which {kind} has this documentation? {entry.facts.does}"
        names = [f"`{each.name}`" for each in wrong]
        facts = tuple(entry_name(each) for each in (entry, *wrong))
        found.append(_example("name", question, f"`{entry.name}`", names, place, facts))
    return found


def _sentences(entries: list[Entry], split: Split, count: int) -> list[Example]:
    rng = _rng("does", split)
    pool = [entry for entry in entries if not entry.is_class and len(entry.facts.does) <= MAX_CHOICE_CHARS]
    count = min(count, len(pool))
    found = []
    for entry, place in zip(rng.sample(pool, count), _places(count, rng), strict=True):
        if not (wrong := _others(entry, pool, rng)):
            continue
        facts = tuple(entry_name(each) for each in (entry, *wrong))
        sentences = [each.facts.does for each in wrong]
        found.append(_example("does", f"What does {subject(entry)} do?", entry.facts.does, sentences, place, facts))
    return found


def _spelled_words(words: list[str], split: Split, count: int) -> list[Example]:
    rng = _rng("word", split)
    count = min(count, len(words))
    found = []
    for word, place in zip(rng.sample(words, count), _places(count, rng), strict=True):
        wrong = [each for each in rng.sample(words, NUM_CHOICES) if each != word][: NUM_CHOICES - 1]
        facts = tuple(word_name(each) for each in (word, *wrong))
        found.append(_example("word", f"Which word is spelled {spelled(word)}?", word, wrong, place, facts))
    return found


def _others(entry: Entry, pool: list[Entry], rng: random.Random) -> list[Entry]:
    """Three other entries, different in name and in sentence from each other and this one; none where the pool is too small."""
    found = [entry]
    for _ in range(MAX_DRAWS):
        if len(found) == NUM_CHOICES:
            break
        other = rng.choice(pool)
        last, sentence = other.name.rsplit(".", 1)[-1].lower(), normalised(other.facts.does)
        if all(last != e.name.rsplit(".", 1)[-1].lower() and sentence != normalised(e.facts.does) for e in found):
            found.append(other)
    return found[1:] if len(found) == NUM_CHOICES else []
