"""The forms in which `builtin-chat` answers, and how a reply is told right or wrong: data, evaluation and RL read the same.

| kind | form of a reply |
|---|---|
| docs | one sentence that ends in a full stop |
| spelling | the letters, joined by " - " |
| counting, arithmetic | the last line is ``#### NUMBER``, as in GSM8K |
| choice | one letter |

A reply is the text of the assistant's turn, without its calls of the tool and what they printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

Kind = Literal["docs", "spelling", "counting", "arithmetic", "choice"]
KINDS: tuple[Kind, ...] = ("docs", "spelling", "counting", "arithmetic", "choice")

FINAL_MARK = "####"
_FINAL = re.compile(r"####[ \t]*\$?[ \t]*([-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))")
_FINAL_LINE = re.compile(r"#### -?[0-9]+")
_LETTERS = re.compile(r"[a-z](?: - [a-z])*")
MAX_NUMBER_CHARS = 100
"""A longer number is no answer; it is not worth the arithmetic."""


def final_line(number: str | int) -> str:
    """The line that ends an answer with a number.

    >>> final_line(46)
    '#### 46'
    """
    return f"{FINAL_MARK} {number}"


def final_number(text: str) -> str | None:
    """The number after the last ``####``, in one way of writing it; None where there is none.

    Thousands' commas, a dollar sign, a plus sign and zeros without a meaning are left out, so that equal numbers are
    equal strings.

    >>> final_number("6 boxes of 200 pens are 1,200 pens.\\n#### 1,200.0")
    '1200'
    >>> final_number("The answer is 12.") is None
    True
    """
    found = _FINAL.findall(text)
    if not found or len(found[-1]) > MAX_NUMBER_CHARS:
        return None
    number = format(Decimal(found[-1].replace(",", "")), "f")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return "0" if number in ("-0", "") else number


def spelled(word: str) -> str:
    """The letters of a word as an answer gives them.

    >>> spelled("cat")
    'c - a - t'
    """
    return " - ".join(word)


def normalised(text: str) -> str:
    """A sentence as it is compared: lower case, single spaces, without backticks and without the full stop."""
    return " ".join(text.replace("`", "").lower().split()).rstrip(". ")


def is_right(kind: Kind, answer: str, reply: str) -> bool:
    """True where a reply gives the answer; marks that carry no meaning may differ (`normalised`, `final_number`)."""
    if kind in ("counting", "arithmetic"):
        return final_number(reply) == answer
    if kind == "spelling":
        return "".join(reply.lower().split()) == "".join(answer.split())
    if kind == "choice":
        return reply.strip().rstrip(".").strip() == answer
    return normalised(reply) == normalised(answer)


def has_format(kind: Kind, reply: str) -> bool:
    """True where a reply has the form that its kind asks for, right or not."""
    return _FORMATS[kind](reply.strip())


def _is_sentence(reply: str) -> bool:
    return reply.endswith(".") and "\n" not in reply and len(reply.split()) >= 2 and reply[0] not in " ."


_FORMATS: dict[Kind, Callable[[str], bool]] = {
    "docs": _is_sentence,
    "spelling": lambda reply: _LETTERS.fullmatch(reply) is not None,
    "counting": lambda reply: _FINAL_LINE.fullmatch(reply.rsplit("\n", 1)[-1]) is not None,
    "arithmetic": lambda reply: _FINAL_LINE.fullmatch(reply.rsplit("\n", 1)[-1]) is not None,
    "choice": lambda reply: len(reply) == 1 and "A" <= reply <= "Z",
}
