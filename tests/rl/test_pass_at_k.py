"""pass@k against what it estimates: a draw of k samples out of n, over all draws there are."""

from __future__ import annotations

from itertools import combinations

import pytest

from firstlight.rl.pass_at_k import pass_at_k, powers_of_two


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(1, 8) for c in range(n + 1)])
def test_equals_the_share_of_all_draws_that_hold_a_right_sample(n: int, c: int) -> None:
    is_right = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(combinations(is_right, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_what_cannot_be_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, c, k)


def test_the_k_that_are_shown_end_with_the_number_of_samples() -> None:
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 12)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 12)]
