"""Sums, differences and products: right by Python's own arithmetic, and no pair of operands in two splits."""

from __future__ import annotations

import random
import re

import pytest

from firstlight.data.chat.builtin_arithmetic import arithmetic, draw_pair, pair_name, result_of
from firstlight.data.chat.builtin_example import split_of

PLUS = ("+", "plus", "more", "another", "together")
MINUS = ("-", "minus", "left", "missing")
TIMES = ("*", "times", "each", "bags", "rows")


def operation_asked(question):
    """The operation that the words of a question ask for."""
    words = question.replace(".", " ").replace("?", " ").replace(",", " ").split()
    found = [op for op, names in (("+", PLUS), ("-", MINUS), ("*", TIMES)) if set(names) & set(words)]
    assert len(found) == 1, question
    return found[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_answer_is_what_python_gives_for_what_is_asked(split):
    examples = arithmetic(split, 600)
    assert len(examples) == 600
    assert len({example.messages[0].text for example in examples}) == 600
    for example in examples:
        user, assistant = example.messages
        code, output, text = (part.text for part in assistant.parts)
        a, op, b = re.fullmatch(r"(\d+)([-+*])(\d+)", code).groups()
        assert re.findall(r"\d+", user.text) == ([b, a] if "needs" in user.text and int(a) < int(b) else [a, b])
        assert op == operation_asked(user.text)
        assert output == example.answer == str(eval(code))  # three tokens, checked above
        assert text == f"#### {eval(code)}"
        low, high = sorted((int(a), int(b)))
        assert example.facts == (f"pair {low} {high}",)
        assert split_of(example.facts[0]) == split


def test_each_operation_has_a_third_and_stories_about_a_third():
    examples = arithmetic("train", 900)
    of_op = [sum(op in example.messages[1].parts[0].text for example in examples) for op in "+-*"]
    assert all(250 < count < 350 for count in of_op)
    assert 200 < sum(example.task == "story" for example in examples) < 400


def test_the_same_every_time():
    assert arithmetic("val", 50) == arithmetic("val", 50)


def test_both_orders_of_a_pair_are_one_fact():
    assert pair_name(3, 12) == pair_name(12, 3) == "pair 3 12"


def test_differences_are_seldom_negative_but_sometimes():
    rng = random.Random(0)
    negative = sum(a < b for a, b in (draw_pair(rng, "-", "train") for _ in range(2_000)))
    assert 50 < negative < 400


def test_results():
    assert (result_of(7, "+", 5), result_of(7, "-", 9), result_of(7, "*", 6)) == (12, -2, 42)
