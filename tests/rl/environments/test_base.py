"""The seam of an environment: what counts as solved."""

from __future__ import annotations

from firstlight.rl.environments.base import SOLVED, is_solved


def test_what_counts_as_solved() -> None:
    # Ten tests of a tenth each add up to a little less than one.
    assert is_solved(sum([0.1] * 10))
    assert is_solved(SOLVED)
    assert [is_solved(r) for r in (0.99, 0.0, None)] == [False] * 3
