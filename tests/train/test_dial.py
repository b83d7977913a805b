"""The dial's rules, against arithmetic by hand."""

from __future__ import annotations

import math

import pytest

from firstlight.train.dial import batch_tokens_for, depth_for, seq_len_for, vocab_size_for


@pytest.mark.parametrize("depth", range(2, 27))
def test_head_stays_below_half_of_the_matmuls_from_depth_2_on(depth):
    head = vocab_size_for(depth) * 64 * depth
    blocks = 12 * (64 * depth) ** 2 * depth
    assert head / (head + blocks) <= 0.42


@pytest.mark.parametrize("depth", range(1, 30))
def test_sizes_are_powers_of_two_that_grow_with_depth(depth):
    for rule in (vocab_size_for, seq_len_for):
        assert math.log2(rule(depth)).is_integer()
        assert rule(depth) <= rule(depth + 1)


@pytest.mark.parametrize("total_flops", [1e12, 2.8e13, 1e14, 1e16])
def test_depth_is_the_one_whose_parameters_are_nearest_to_the_law(total_flops):
    def params(depth):
        width = 64 * depth
        return 12 * depth * width**2 + vocab_size_for(depth) * width

    wanted = 1.4e6 * math.sqrt(total_flops / 2.8e13)
    best = depth_for(total_flops)
    for other in (best - 1, best + 1):
        if other >= 1:
            assert abs(math.log(params(best) / wanted)) <= abs(math.log(params(other) / wanted))


def test_batches_by_hand():
    # 4096 * (13 / 6.5)^0.7 = 6654, whose nearest power of two is 8192.
    assert batch_tokens_for(13e6) == 8192
    assert batch_tokens_for(1e5) == 4096
