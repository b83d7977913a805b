"""Docstrings in the three styles, and what is no clean sentence."""

from __future__ import annotations

import pytest

from firstlight.data.chat.builtin_facts import Facts, facts_of, sentence

NUMPY = """Return the sum of all items.

A longer text that says more: Returns: nothing.

Parameters
----------
items : sequence of int, optional
    The items to add up.
    There may be none.
*rest
    Further items of any kind. They come last.
x, y : int
    Two things at once.

Returns
-------
total : int
    the sum of the `items`

Raises
------
ValueError
    If an item is negative.
OverflowError : never here
    When the sum is too large.

See Also
--------
other : Not a parameter.
"""

GOOGLE = """Split a text into words.

Args:
    text (str): The text to split. It may be empty.
    limit: Highest number of words, as a
        whole number (default: 10).
    ratio (float, optional): :class:`float` between zero and one

Returns:
    List[str]: The words of ``text`` in their order.

Raises:
    TypeError: if the text is not a string
"""

SPHINX = """Open the door of a house.

:param house: the house to enter
:param int floor: number of the floor,
    the ground being zero
:returns: the open door
:raises KeyError: if the key is missing
"""


def test_numpy_style():
    assert facts_of(NUMPY) == Facts(
        does="Return the sum of all items.",
        params=(("items", "The items to add up."), ("rest", "Further items of any kind.")),
        returns="The sum of the `items`.",
        raises=(("ValueError", "If an item is negative."), ("OverflowError", "When the sum is too large.")),
    )


def test_google_style():
    assert facts_of(GOOGLE) == Facts(
        does="Split a text into words.",
        params=(
            ("text", "The text to split."),
            ("limit", "Highest number of words, as a whole number."),
            ("ratio", "`float` between zero and one."),
        ),
        returns="The words of `text` in their order.",
        raises=(("TypeError", "If the text is not a string."),),
    )


def test_sphinx_style():
    assert facts_of(SPHINX) == Facts(
        does="Open the door of a house.",
        params=(("house", "The house to enter."), ("floor", "Number of the floor, the ground being zero.")),
        returns="The open door.",
        raises=(("KeyError", "If the key is missing."),),
    )


def test_several_returned_values_are_no_single_answer():
    text = "Do a thing well.\n\nReturns\n-------\na : int\n    The first one.\nb : int\n    The second one.\n"
    assert facts_of(text) == Facts(does="Do a thing well.")


def test_a_signature_in_front_is_not_what_it_does():
    assert facts_of("add(a, b, *, c=1) -> int\n\nAdd two numbers.").does == "Add two numbers."


def test_what_is_raised_is_left_out_where_it_was_not_understood():
    text = "Do a thing well.\n\nRaises\n------\nValueError\n    If it is bad.\nan error of some kind\n    If it is worse.\n"
    assert facts_of(text).raises == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the number of items", "The number of items."),
        ("One sentence here. And one more.", "One sentence here."),
        ("Takes e.g. a list of numbers. More.", "Takes e.g. a list of numbers."),
        ("Uses numpy.float64 for it. More.", "Uses numpy.float64 for it."),
        ("The **bold** and *leaning* word", "The bold and leaning word."),
        ("A :func:`~os.path.join` of parts", "A `os.path.join` of parts."),
        ("A `link <https://example.org>`_ to it", "A link to it."),
        ("A method of note [1]_ by them", "A method of note by them."),
        ("An iterable of [`RepoInfo`] objects", "An iterable of `RepoInfo` objects."),
        ("The path to use, default is here.", "The path to use."),
        ("First line\nand the second", "First line and the second."),
        ("A paragraph here.\n\nAnother one.", "A paragraph here."),
        ("Is it right? Yes.", ""),
        ("One of the following:", ""),
        ("- a list\n- of things", ""),
        ("See the other function", ""),
        ("D.keys() -> a set-like object", ""),
        ("The value of $x^2$ here", ""),
        ("Text with ``an open mark", ""),
        ("Text (with an open bracket", ""),
        ("Grüße an alle Leser", ""),
        ("Number of things; the default", ""),
        ("word", ""),
        ("", ""),
        ("a" * 30 + " " + "b" * 200, ""),
    ],
)  # fmt: skip
def test_sentences(text, found):
    assert sentence(text) == found


def test_facts_through_json():
    facts = facts_of(NUMPY)
    assert Facts.from_json(facts.to_json()) == facts
