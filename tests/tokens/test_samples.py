"""The built-in samples are what their names say."""

from __future__ import annotations

import ast
import json
import unicodedata

import pytest

from firstlight.tokens.samples import SAMPLES


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        ("English prose", "LATIN"),
        ("Russian", "CYRILLIC"),
        ("Greek", "GREEK"),
        ("Arabic", "ARABIC"),
        ("Hebrew", "HEBREW"),
        ("Hindi", "DEVANAGARI"),
        ("Thai", "THAI"),
        ("Chinese", "CJK"),
        ("Korean", "HANGUL"),
    ],
)
def test_letters_are_of_the_script(kind: str, script: str) -> None:
    letters = [c for c in SAMPLES[kind] if c.isalpha()]
    assert len(letters) > 50
    assert sum(unicodedata.name(c).startswith(script) for c in letters) > 0.95 * len(letters)


def test_code_and_json_parse() -> None:
    ast.parse(SAMPLES["Python code"])
    json.loads(SAMPLES["JSON"])


def test_no_sample_is_long_or_twice_there() -> None:
    assert all(50 < len(text) < 500 for text in SAMPLES.values())
    assert len(set(SAMPLES.values())) == len(SAMPLES) > 15
