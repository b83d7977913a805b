"""Tests of firstlight.eval.core.scorer."""

import pytest

from firstlight.eval.core.scorer import Request, Scored


@pytest.mark.parametrize("start", [0, -1, 3, 4])
def test_a_request_has_something_to_score_and_something_before_it(start):
    with pytest.raises(ValueError, match=f"start {start} of 3"):
        Request((1, 2, 3), start)


def test_mean_is_per_scored_id():
    assert Scored(nats=6.0, num_tokens=4, is_greedy=False).mean_nats == 1.5
