"""The last look at each conversation before it is written: what is not as it must be is left out and counted.

The makers do not make such conversations on purpose; docstrings of versions yet unwritten may surprise them.
"""

from __future__ import annotations

import re
from collections import Counter

from firstlight.data.chat.builtin_answers import has_format, is_right
from firstlight.data.chat.builtin_example import SPLITS, Example, Split, split_of
from firstlight.errors import DataError
from firstlight.tokens.conversation import folded
from firstlight.tokens.special import SPECIAL_TOKENS

MAX_CHARS = 1_400
"""A longer conversation would not fit a row of 256 tokens."""
_CHOICE = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


def fault(example: Example, split: Split) -> str | None:
    """What is wrong with a conversation of a split, in two or three words; None where nothing is."""
    texts = [part.text for message in example.messages for part in message.parts]
    if not all(text.strip() for text in texts):
        return "empty part"
    if any(token in text for text in texts for token in SPECIAL_TOKENS):
        return "special token"
    if sum(map(len, texts)) > MAX_CHARS:
        return "too long"
    try:
        turns = folded(example.messages)
    except DataError:
        return "roles out of order"
    if turns[-1].role != "assistant":
        return "no answer"
    if any(split_of(fact) != split for fact in example.facts):
        return "fact of another split"
    if example.answer is None or example.kind == "talk":
        return None
    reply = turns[-1].text
    if not is_right(example.kind, example.answer, reply) or not has_format(example.kind, reply):
        return "reply is not its answer"
    if example.kind == "choice":
        shown = [text.lower() for _, text in _CHOICE.findall(turns[-2].text)]
        if len(shown) < 2 or len(set(shown)) != len(shown):
            return "equal choices"
    return None


def without_faults(examples: dict[Split, list[Example]]) -> tuple[dict[Split, list[Example]], Counter[str]]:
    """The conversations of each split that have no fault, and counts of the others by fault.

    A question that an earlier split asks in the same words is left out too; the held-out splits come first.
    """
    counts: Counter[str] = Counter()
    kept: dict[Split, list[Example]] = {}
    seen: set[tuple[str, ...]] = set()
    for split in reversed(SPLITS):
        kept[split] = []
        for example in examples[split]:
            asked = tuple(message.text for message in example.messages if message.role != "assistant")
            found = "asked before" if asked in seen else fault(example, split)
            if found:
                counts[found] += 1
            else:
                seen.add(asked)
                kept[split].append(example)
    return {split: kept[split] for split in SPLITS}, counts
