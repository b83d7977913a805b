"""Names with weights, and whose each row is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.data.chat.mixture import Mixture, Schedule
from firstlight.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("builtin-chat", [("builtin-chat", 1.0)]),
        ("builtin-chat,my.jsonl:2,text:0.5", [("builtin-chat", 1.0), ("my.jsonl", 2.0), ("text", 0.5)]),
        (" a : 2 , b ", [("a", 2.0), ("b", 1.0)]),
        ("hf:owner/name", [("hf:owner/name", 1.0)]),
        ("hf:owner/name:data", [("hf:owner/name:data", 1.0)]),
        ("hf:owner/name:4:1", [("hf:owner/name:4", 1.0)]),
        ("C:\\talks\\a.jsonl:1e-1", [("C:\\talks\\a.jsonl", 0.1)]),
    ],
)
def test_parse(text: str, parts: list) -> None:
    mixture = Mixture.parse(text)
    assert list(mixture.parts) == parts
    assert Mixture.parse(str(mixture)) == mixture
    assert mixture.names == tuple(name for name, _ in mixture.parts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a name is empty"),
        ("a,,b", "a name is empty"),
        (":2", "a name is empty"),
        ("a:0", "the weight 0 of a is not above 0"),
        ("a:-1", "the weight -1 of a"),
        ("a:nan", "the weight nan of a"),
        ("a:inf", "the weight inf of a"),
        ("a:1,b,a:2", "a is named twice"),
        ("a:0.123456789,b:1", "exact only over"),
    ],
)
def test_wrong_mixtures(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Mixture.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1.0], (1,)),
        ([0.3], (1,)),
        ([2.0, 1.0, 0.5], (4, 2, 1)),
        ([0.6, 0.4], (3, 2)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([1.0, 1.0], (1, 1)),
        ([100.0, 50.0], (2, 1)),
        ([1e-3, 1.0], (1, 1000)),
    ],
)
def test_shares_are_the_smallest_whole_numbers(weights: list[float], shares: tuple[int, ...]) -> None:
    assert Schedule(weights, seed=0).shares == shares


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5), st.randoms())
def test_proportions_are_exact_in_each_cycle_and_rows_follow_each_other(weights, seed, random) -> None:
    schedule = Schedule([float(weight) for weight in weights], seed=seed)
    cycle = schedule.cycle_rows
    line = [schedule.at(row) for row in range(3 * cycle)]
    for start in range(0, 3 * cycle, cycle):
        counts = Counter(component for component, _ in line[start : start + cycle])
        assert tuple(counts[i] for i in range(len(weights))) == schedule.shares
    for component in range(len(weights)):
        assert [n for each, n in line if each == component] == list(range(3 * schedule.shares[component]))
    # At random, from a fresh value, it is the same.
    for row in random.sample(range(3 * cycle), min(20, 3 * cycle)):
        fresh = Schedule([float(weight) for weight in weights], seed=seed)
        component, n = fresh.at(row)
        assert (component, n) == line[row]
        assert fresh.row_of(component, n) == row
        assert fresh.count_before(component, row) == n


def test_cycles_differ_and_seeds_differ() -> None:
    def cycles(seed: int) -> list[tuple[int, ...]]:
        schedule = Schedule([5, 3, 2], seed=seed)
        return [tuple(schedule.at(10 * cycle + i)[0] for i in range(10)) for cycle in range(4)]

    assert len(set(cycles(0))) > 1
    assert cycles(0) == cycles(0)
    assert cycles(0) != cycles(1)
