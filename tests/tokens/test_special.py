"""Special tokens: which there are, and that their ids are the last."""

from __future__ import annotations

from firstlight.tokens.special import BOS, SPECIAL_TOKENS, special_ids


def test_there_are_nine_different_ones_and_the_first_is_bos() -> None:
    assert len(set(SPECIAL_TOKENS)) == len(SPECIAL_TOKENS) == 9
    assert SPECIAL_TOKENS[0] == BOS == "<|bos|>"


def test_each_opening_has_its_end() -> None:
    starts = {name for name in SPECIAL_TOKENS if name.endswith("_start|>")}
    ends = {name for name in SPECIAL_TOKENS if name.endswith("_end|>")}
    assert {name.replace("_start", "_end") for name in starts} == ends
    assert len(starts) == 4


def test_ids_follow_the_ranks() -> None:
    assert list(special_ids(1000).values()) == list(range(1000, 1009))
