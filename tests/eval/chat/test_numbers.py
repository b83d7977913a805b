"""Claims of eval/chat/numbers.py: numbers are compared as numbers, and the last #### of an answer counts."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from firstlight.errors import DataError
from firstlight.eval.chat.numbers import graded, gsm8k, spelling, svamp, words_of

PROBLEM = {"question": "How many legs have 3 cats?", "answer": "3 * 4 = <<3*4=12>>12\n#### 12"}


@pytest.mark.parametrize(
    ("reply", "is_right", "has_format"),
    [
        ("3 cats have 12 legs.\n#### 12", True, True),
        ("#### 12.0", True, True),
        ("#### $12", True, True),
        ("#### 1,2", True, True),
        ("#### 3\nNo:\n#### 12", True, True),
        ("#### 12\n#### 3", False, True),
        ("#### 120", False, True),
        ("#### -12", False, True),
        ("12", False, False),
        ("The answer is 12.", False, False),
        ("####", False, False),
        ("", False, False),
    ],
)
def test_an_answer_is_its_last_number_behind_the_mark(reply: str, is_right: bool, has_format: bool) -> None:
    grade = graded("12", reply)
    assert (grade.is_right, grade.has_format) == (is_right, has_format)


def test_a_problem_is_asked_as_it_stands() -> None:
    [item] = gsm8k([("f:0", PROBLEM)]).items
    assert item.messages[0].text == PROBLEM["question"]
    assert (item.answer, item.chance, item.num_choices) == ("12", 0.0, 0)
    assert item.grade is not None
    assert item.grade("#### 12").is_right


@pytest.mark.parametrize("row", [{}, [], {"question": "q", "answer": "no number"}, {"question": 1, "answer": "#### 1"}])
def test_a_row_of_another_form_is_named(row: object) -> None:
    with pytest.raises(DataError, match="f:4"):
        gsm8k([("f:4", row)])
    with pytest.raises(DataError, match="f:4"):
        svamp([("f:4", row)])


def test_both_forms_of_svamp_ask_the_same() -> None:
    one = svamp([("f:0", {"context": "Two and two. How many?", "answer": "4"})])
    two = svamp([("f:0", {"Body": "Two and two.", "Question": "How many?", "Answer": 4.0})])
    assert one.content_hash == two.content_hash


def test_spelling_counts_letters() -> None:
    words = ["straw" + chr(97 + i) + "berry" for i in range(26)] + ["no", "Capital", "x1y2z3"]
    task = spelling(words, origin="mine")
    assert len(task.items) == 26
    assert spelling(words[::-1], origin="mine").content_hash == task.content_hash
    for item in task.items:
        text = item.messages[0].text
        word, letter = sorted(re.findall(r'"([a-z]+)"', text), key=len, reverse=True)
        assert item.answer == str(sum(each == letter for each in word))
    with pytest.raises(DataError, match="3 words"):
        spelling(["cat", "dog", "cow", "a"], origin="mine")
    assert words_of([" a ", "", "b"]) == ["a", "b"]


def test_every_real_answer_is_right_and_read_as_another_reader_reads_it(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "chat/gsm8k_test.jsonl").read_text().split("\n") if line]
    task = gsm8k([(str(i), row) for i, row in enumerate(rows)])
    assert len(task.items) == 1319
    for item, row in zip(task.items, rows, strict=True):
        # The form of the data set's own reader: what stands behind "#### ", without commas.
        assert Fraction(item.answer) == Fraction(row["answer"].split("#### ")[1].strip().replace(",", ""))
        assert item.grade is not None
        assert item.grade(row["answer"]).is_right
        assert not item.grade(row["answer"] + "1").is_right
