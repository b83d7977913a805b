"""From docstring to prose: code, examples, tables and markup go, sentences stay."""

from __future__ import annotations

import pytest

from firstlight.data.sources.prose import clean, is_prose

SENTENCES = (
    "This function returns the number of words that are in the text, and it does so in one pass over the file. "
    "If the file is empty then the result is zero. It is an error to give a file that was closed before the call, "
    "because there would be nothing to read from it."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\n\n>>> f(1)\n2\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n\n\n\nTwo.  \n", "One.\n\nTwo."),
        ("One.\n\n```python\nx = 1\n\ny = 2\n```\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n.. code-block:: python\n\n    x = 1\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n.. math::\n    x^2\n\nTwo.", "One.\n\nTwo."),
        ("Given by::\n\n    x = y ** 2\n\nTwo.", "Given by:\n\nTwo."),
        ("Note::\n\n    This is what you have to do if it is in the way.\n", "Note:\n\n    This is what you have to do if it is in the way."),
        (".. note:: Mind the gap.", "Note: Mind the gap."),
        ("See :class:`~torch.nn.Module` and :func:`len`.", "See torch.nn.Module and len."),
        ("As shown [1]_ and `here <http://x.y>`_.", "As shown and here."),
        ("One.\n\nParameters\n----------\nx : int\n    A number.\n", "One.\n\nParameters:\n\nx : int\n    A number."),
        ("One.\n\nExamples\n========\n\n>>> f()\n1\n\nNotes\n=====\n\nTwo.", "One.\n\nNotes:\n\nTwo."),
        ("One.\n\nReferences\n----------\n.. [1] A. B., A book.\n", "One."),
        ("One.\n\nExample:\n    f(1)\n\nTwo.", "One.\n\nTwo."),
        ("a\r\nb", "a\nb"),
        ("", ""),
        (">>> only\n'code'", ""),
    ],
)  # fmt: skip
def test_clean(text, expected):
    assert clean(text) == expected


def test_cleaning_twice_changes_nothing_more():
    text = f"{SENTENCES}\n\nParameters\n----------\nx : int\n    {SENTENCES}\n\nExamples\n--------\n>>> f()\n"
    assert clean(clean(text)) == clean(text)


def test_sentences_are_prose():
    assert is_prose(SENTENCES)


@pytest.mark.parametrize(
    "text",
    [
        SENTENCES[:150],
        "x = f(y[0]) + g(z, w); return {k: v for k, v in d.items()} " * 8,
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda " * 8,
        "0 1 2 3 4 5 6 7 8 9 10 11 12 " * 20,
        "the        of        a         to       in        is        " * 8,
        SENTENCES + "\ud800",
    ],
    ids=["short", "code", "names", "numbers", "columns", "not_utf8"],
)
def test_what_is_no_prose(text):
    assert not is_prose(text)
