"""Small sums, differences and products, asked in several ways and answered with the calculator.

    user: What is 12 + 34?
    assistant: <|python_start|>12+34<|python_end|><|output_start|>46<|output_end|>#### 46

A pair of operands belongs to one split whatever the operation and the order, so no held-out result can be remembered.
"""

from __future__ import annotations

import random

from firstlight.data.chat.builtin_answers import final_line
from firstlight.data.chat.builtin_example import Example, Split, ask_with_tool, split_of

WORDS_OF = {"+": "plus", "-": "minus", "*": "times"}
ASKS = (
    "What is {a} {op} {b}?",
    "What is {a} {word} {b}?",
    "How much is {a} {op} {b}?",
    "{a} {op} {b} = ?",
    "Calculate {a} {op} {b}.",
    "Compute {a} {word} {b}.",
)
THINGS = ("apples", "books", "cards", "coins", "eggs", "files", "keys", "nails", "pages", "pens", "shells", "stamps")
NAMES = ("Ada", "Ben", "Eva", "Ian", "Kim", "Leo", "Mia", "Tom")
STORIES = {
    "+": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in one box and {b} in another. How many {things} are there in all?",
        "{name} counts {a} {things} today and {b} tomorrow. How many {things} is that together?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
        "There are {a} {things} on a table. {name} takes {b} of them. How many {things} are left?",
        "{name} needs {a} {things} and has {b}. How many {things} are missing?",
    ),
    "*": (
        "There are {a} boxes with {b} {things} each. How many {things} are there in all?",
        "{name} buys {a} bags of {b} {things}. How many {things} is that?",
        "A shelf has {a} rows of {b} {things}. How many {things} are on it?",
    ),
}
STORY_FRAC = 0.35
HIGHEST = {"+": (99, 99), "-": (99, 99), "*": (20, 20)}
"""Largest first and second operand. Some sums and differences have operands of three digits."""
THREE_DIGITS_FRAC = 0.2


def pair_name(a: int, b: int) -> str:
    """Name of the fact that a pair of operands is: the same for both orders."""
    return f"pair {min(a, b)} {max(a, b)}"


def draw_pair(rng: random.Random, op: str, split: Split) -> tuple[int, int]:
    """Operands of a split. A difference is not negative more often than chance has it, and is now and then."""
    high_a, high_b = HIGHEST[op]
    if op != "*" and rng.random() < THREE_DIGITS_FRAC:
        high_a = 999
    while True:
        a, b = rng.randint(0, high_a), rng.randint(0, high_b)
        if op == "-" and a < b and rng.random() < 0.8:
            a, b = b, a
        if split_of(pair_name(a, b)) == split:
            return a, b


def result_of(a: int, op: str, b: int) -> int:
    """What the calculator gives."""
    return a + b if op == "+" else a - b if op == "-" else a * b


def arithmetic(split: Split, count: int) -> list[Example]:
    """Up to ``count`` different questions of a split; the same ones every time."""
    rng = random.Random(f"builtin-chat arithmetic {split}")
    found: dict[str, Example] = {}
    # A question that was made before is drawn again; the bound ends it where a split has fewer than asked for.
    for turn in range(20 * count):
        if len(found) == count:
            break
        op = "+-*"[turn % 3]
        a, b = draw_pair(rng, op, split)
        if rng.random() < STORY_FRAC and min(a, b) > 1 and not (op == "-" and a <= b):
            ask = rng.choice(STORIES[op]).format(a=a, b=b, name=rng.choice(NAMES), things=rng.choice(THINGS))
            task = "story"
        else:
            ask = rng.choice(ASKS).format(a=a, b=b, op=op, word=WORDS_OF[op])
            task = "plain"
        result = str(result_of(a, op, b))
        messages = ask_with_tool(ask, f"{a}{op}{b}", result, final_line(result))
        found.setdefault(ask, Example("arithmetic", task, messages, result, (pair_name(a, b),)))
    return list(found.values())
