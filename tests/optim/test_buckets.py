"""Flat buffers: every element has one owner, and sums and weights arrive where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks

from firstlight.optim.buckets import ALIGNMENT, Bucket, pieces_of, place_flat, place_whole

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=12)


@pytest.mark.parametrize("place", [place_whole, place_flat])
@given(sizes=SIZES, world_size=st.integers(1, 9))
def test_every_element_has_exactly_one_owner(place, sizes, world_size):
    placement = place(sizes, world_size)
    owned = [np.zeros(size, dtype=int) for size in sizes]
    for rank in range(world_size):
        taken = np.zeros(placement.segment, dtype=int)
        for piece in pieces_of(sizes, placement, rank):
            owned[piece.index][piece.start : piece.stop] += 1
            taken[piece.offset : piece.offset + piece.stop - piece.start] += 1
        assert taken.max(initial=0) <= 1, "two pieces lie over each other"
    assert all((count == 1).all() for count in owned)


@given(sizes=SIZES, world_size=st.integers(1, 9))
def test_a_whole_placement_cuts_nothing_and_is_level(sizes, world_size):
    placement = place_whole(sizes, world_size)
    pieces = [piece for rank in range(world_size) for piece in pieces_of(sizes, placement, rank)]
    assert sorted(piece.index for piece in pieces) == list(range(len(sizes)))
    assert all(piece.stop - piece.start == sizes[piece.index] for piece in pieces)
    # The bound of "largest first" (Graham 1969) is 4/3 of the best, which is at least the mean and the largest.
    best = max(max(sizes), sum(sizes) / world_size) + ALIGNMENT * len(sizes)
    assert placement.segment <= 4 / 3 * best


def test_matrices_of_a_small_gpt_are_level_on_two_four_and_eight_ranks():
    # Four layers of width 256: four square matrices and two of four times the size in each.
    sizes = ([256 * 256] * 4 + [4 * 256 * 256] * 2) * 4
    for world_size in (2, 4, 8):
        assert place_whole(sizes, world_size).segment == sum(sizes) / world_size


def exchange(runtime, sizes):
    parameters = [torch.nn.Parameter(torch.full((size,), float(i))) for i, size in enumerate(sizes)]
    results = []
    for place in (place_whole, place_flat):
        placement = place(sizes, runtime.world_size)
        bucket = Bucket(parameters, placement, runtime=runtime)
        kept = [parameter.detach().clone() for parameter in parameters]
        for i, parameter in enumerate(parameters):
            parameter.grad = None if i == 1 else torch.arange(sizes[i]) + 1000.0 * runtime.rank
        bucket.start_reduce()
        dropped = all(parameter.grad is None for parameter in parameters)
        bucket.finish_reduce()
        pieces = pieces_of(sizes, placement, runtime.rank)
        sums = {
            (p.index, p.start, p.stop): bucket.grads[p.offset : p.offset + p.stop - p.start].tolist() for p in pieces
        }
        # What backward passes add to is packed as it comes, and gives the same sums.
        bucket.zero_grads()
        for i, parameter in enumerate(parameters):
            if i != 1:
                parameter.grad.add_(torch.arange(sizes[i]) + 1000.0 * runtime.rank)
        before = bucket.grads.clone()
        bucket.grads.fill_(-1)
        bucket.start_reduce()
        bucket.finish_reduce()
        dropped = dropped and torch.equal(before, bucket.grads)
        bucket.segment_of(runtime.rank).add_(1 + runtime.rank)
        bucket.start_share()
        bucket.finish_share()
        moved = [(parameter.detach() - before).tolist() for parameter, before in zip(parameters, kept, strict=True)]
        results.append((dropped, sums, moved, [len(pieces_of(sizes, placement, r)) for r in range(runtime.world_size)]))
    return results


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_are_summed_at_their_owner_and_weights_reach_everybody(world_size):
    sizes = [40, 7, 33]
    found = run_ranks(exchange, world_size, sizes)
    for which, place in enumerate((place_whole, place_flat)):
        placement = place(sizes, world_size)
        expected_moves = [np.zeros(size) for size in sizes]
        for rank in range(world_size):
            dropped, sums, _, _ = found[rank][which]
            assert dropped
            for piece in pieces_of(sizes, placement, rank):
                expected_moves[piece.index][piece.start : piece.stop] = 1 + rank
                elements = np.arange(piece.start, piece.stop)
                total = world_size * elements + 1000.0 * sum(range(world_size)) if piece.index != 1 else 0 * elements
                assert sums[piece.index, piece.start, piece.stop] == total.tolist()
        for rank in range(world_size):
            for moved, expected in zip(found[rank][which][2], expected_moves, strict=True):
                assert moved == expected.tolist()
