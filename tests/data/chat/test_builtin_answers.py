"""How a reply is read: numbers, letters, sentences."""

from __future__ import annotations

import pytest

from firstlight.data.chat.builtin_answers import final_line, final_number, has_format, is_right, spelled


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 46", "46"),
        ("12 + 34 = 46\n#### 46", "46"),
        ("####46", "46"),
        ("#### -7", "-7"),
        ("#### +7", "7"),
        ("#### 1,234", "1234"),
        ("#### $1,234.50", "1234.5"),
        ("#### 46.0", "46"),
        ("#### 100", "100"),
        ("#### .5", "0.5"),
        ("#### -0", "0"),
        ("#### 007", "7"),
        ("#### 46.", "46"),
        ("#### 46 apples", "46"),
        ("first #### 1 and then #### 2", "2"),
        ("The answer is 46.", None),
        ("####", None),
        ("#### none", None),
        ("", None),
        ("#### " + "9" * 5000, None),
        ("#### ٤٦", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_what_final_line_writes_is_read_again():
    for number in (0, 5, -12, 123456):
        assert final_number(final_line(number)) == str(number)


@pytest.mark.parametrize(
    ("kind", "answer", "reply", "right", "formed"),
    [
        ("arithmetic", "46", "#### 46", True, True),
        ("arithmetic", "46", "12 + 34 = 46\n#### 46", True, True),
        ("arithmetic", "46", "#### 47", False, True),
        ("arithmetic", "46", "46", False, False),
        ("arithmetic", "46", "It is #### 46 or so", True, False),
        ("counting", "3", "#### 3", True, True),
        ("counting", "3", "", False, False),
        ("spelling", "c - a - t", "c - a - t", True, True),
        ("spelling", "c - a - t", "C - A - T", True, False),
        ("spelling", "c - a - t", "c - a - r", False, True),
        ("spelling", "c - a - t", "cat", False, False),
        ("spelling", "c - a - t", "c - a - t -", False, False),
        ("choice", "B", "B", True, True),
        ("choice", "B", " B\n", True, True),
        ("choice", "B", "B.", True, False),
        ("choice", "B", "b", False, False),
        ("choice", "B", "A", False, True),
        ("choice", "B", "B. ValueError", False, False),
        ("docs", "It raises ValueError.", "It raises ValueError.", True, True),
        ("docs", "The `x` of it.", "the x  of it", True, False),
        ("docs", "The `x` of it.", "The y of it.", False, True),
        ("docs", "The `x` of it.", "", False, False),
        ("docs", "The `x` of it.", ".", False, False),
        ("docs", "The `x` of it.", "One.\nTwo things.", False, False),
    ],
)
def test_right_and_formed(kind, answer, reply, right, formed):
    assert is_right(kind, answer, reply) is right
    assert has_format(kind, reply) is formed


def test_spelled():
    assert spelled("abc") == "a - b - c"
