"""Prompts of a task's examples, letter for letter as nanochat renders them, with the same examples shown before.

A prompt is a number of solved examples, an empty line after each, and the question:

    Question: ...            query of another example
    Answer: the right one    delimiter and its right choice
                             (an empty line)
    Question: ...            query of this one
    Answer: a choice         what is scored; one prompt for each choice

Numbers come from Python's own generator with fixed seeds, so that every model sees the same prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from firstlight.eval.core.bundle import Example, Kind, Task

SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234


def ordered(examples: Sequence[Example], *, max_per_task: int | None = None) -> list[Example]:
    """Examples in the fixed random order, the first ``max_per_task`` of them."""
    found = list(examples)
    random.Random(SHUFFLE_SEED).shuffle(found)
    return found if max_per_task is None else found[:max_per_task]


def fewshot_indices(index: int, *, num_examples: int, num_fewshot: int) -> list[int]:
    """Which of the ordered examples are shown before number ``index``: never itself.

    Where there are fewer others than asked for, all of them, in the order of a draw of all.
    """
    if num_fewshot == 0:
        return []
    others = [i for i in range(num_examples) if i != index]
    return random.Random(FEWSHOT_SEED + index).sample(others, min(num_fewshot, len(others)))


def render(task: Task, examples: Sequence[Example], index: int) -> list[str]:
    """Prompts of example number ``index`` of the ordered ``examples``.

    multiple_choice, schema: one for each option. language_modeling: without the continuation, and with it. The first is
    stripped of white space, which could otherwise not be found again in the ids of the second.
    """
    shots = fewshot_indices(index, num_examples=len(examples), num_fewshot=task.num_fewshot)
    before = "".join(_solved(task.kind, examples[i], task.delimiter) + "\n\n" for i in shots)
    example, delimiter = examples[index], task.delimiter
    if task.kind == "multiple_choice":
        return [before + example.text + delimiter + choice for choice in example.options]
    if task.kind == "schema":
        return [before + context + delimiter + example.text for context in example.options]
    question = before + example.text.strip() + delimiter
    return [question.strip(), question + example.options[0]]


def _solved(kind: Kind, example: Example, delimiter: str) -> str:
    if kind == "multiple_choice":
        return example.text + delimiter + example.options[example.gold]
    if kind == "schema":
        return example.options[example.gold] + delimiter + example.text
    return example.text.strip() + delimiter + example.options[0]
