"""Claims of serve/stops.py: no part of a stop string is shown, and nothing else is lost, however a text is cut."""

from __future__ import annotations

import random

import pytest

from firstlight.serve.stops import StopScanner


def cut_by_hand(text: str, stops: list[str]) -> str:
    """The text before the stop string that is whole first, looked for at every place."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))]
    return text


def streamed(text: str, stops: list[str], rng: random.Random) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown = ""
    while text:
        size = rng.randint(1, 4)
        shown += scanner.push(text[:size])
        text = text[size:]
        if scanner.is_stopped:
            assert scanner.push("more") == ""
            return shown + scanner.flush(), True
    return shown + scanner.flush(), False


def test_every_cut_of_a_text_gives_what_looking_at_the_whole_gives() -> None:
    rng = random.Random(0)
    num_stopped = 0
    for _ in range(2000):
        stops = ["".join(rng.choices("abé", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 4))]
        text = "".join(rng.choices("abcé", k=rng.randint(0, 12)))
        expected = cut_by_hand(text, stops)
        assert streamed(text, stops, rng) == (expected, expected != text or any(s in text for s in stops))
        num_stopped += expected != text
    assert 500 < num_stopped < 1900


def test_what_cannot_become_a_stop_is_shown_at_once() -> None:
    scanner = StopScanner(["\n\n"])
    assert [scanner.push(piece) for piece in ("a", "\n", "b", "\n", "\n")] == ["a", "", "\nb", "", ""]
    assert scanner.is_stopped


def test_without_stops_a_text_passes() -> None:
    scanner = StopScanner([])
    assert scanner.push("abc") == "abc"
    assert not scanner.is_stopped


def test_an_empty_stop_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        StopScanner([""])
