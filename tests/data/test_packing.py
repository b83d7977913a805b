"""Packing against a brute-force reading of its rows: what is a target, how often, and what is padding."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.data.packing import PackedRows, Segment, pack_bestfit, pack_stream

lengths_of_documents = st.lists(st.integers(0, 60), max_size=40)
row_lens = st.integers(2, 40)
seeds = st.integers(0, 2**63)
both = pytest.mark.parametrize("pack", [pack_bestfit, pack_stream])


def spelled(packed: PackedRows) -> list[list[tuple[int, int]]]:
    """Each row as places: (document, index of the id), index -1 for BOS."""
    rows = []
    for i in range(packed.num_rows):
        row = []
        for doc, start, stop, with_bos in packed.row(i):
            row += [(doc, -1)] * with_bos + [(doc, k) for k in range(start, stop)]
        rows.append(row)
    return rows


@both
@given(lengths_of_documents, row_lens, seeds)
@settings(max_examples=150, deadline=None)
def test_each_id_of_each_document_is_a_target_exactly_once(pack, lengths, row_len, seed):
    packed = pack(np.array(lengths, dtype=np.int64), row_len=row_len, seed=seed)
    targets = Counter(place for row in spelled(packed) for place in row[1:] if place[1] >= 0)
    assert targets == Counter((doc, k) for doc, n in enumerate(lengths) for k in range(n))
    assert packed.tokens_used == packed.tokens_total == sum(lengths)


@both
@given(lengths_of_documents, row_lens, seeds)
@settings(max_examples=100, deadline=None)
def test_every_row_but_the_last_is_full_and_none_is_too_long(pack, lengths, row_len, seed):
    packed = pack(np.array(lengths, dtype=np.int64), row_len=row_len, seed=seed)
    rows = spelled(packed)
    assert all(len(row) == row_len for row in rows[:-1])
    assert all(2 <= len(row) <= row_len for row in rows[-1:])
    filled = sum(map(len, rows))
    assert (packed.positions_filled, packed.positions_total) == (filled, len(rows) * row_len)


@given(lengths_of_documents, row_lens, seeds)
@settings(max_examples=100, deadline=None)
def test_bestfit_rows_and_pieces_begin_with_bos(lengths, row_len, seed):
    packed = pack_bestfit(np.array(lengths, dtype=np.int64), row_len=row_len, seed=seed)
    for row in spelled(packed):
        assert row[0][1] == -1
        for before, place in itertools.pairwise(row):
            # Inside a row, ids of one document follow each other; anything else has a BOS in front.
            assert place[1] == -1 or place[0] == before[0]
            assert place[1] <= 0 or before[1] in (place[1] - 1, -1)


@given(lengths_of_documents, row_lens, seeds)
@settings(max_examples=100, deadline=None)
def test_stream_rows_joined_are_the_documents_in_one_line(lengths, row_len, seed):
    packed = pack_stream(np.array(lengths, dtype=np.int64), row_len=row_len, seed=seed)
    rows = spelled(packed)
    line = [place for i, row in enumerate(rows) for place in (row if i == 0 else row[1:])]
    assert all(a[-1] == b[0] for a, b in itertools.pairwise(rows))
    order = list(dict.fromkeys(doc for doc, _ in line))
    assert line == [(doc, k) for doc in order for k in range(-1, lengths[doc])]
    assert sorted(order) == [doc for doc, n in enumerate(lengths) if n]


@given(lengths_of_documents, row_lens, seeds)
@settings(max_examples=60, deadline=None)
def test_bestfit_takes_the_largest_piece_that_fits(lengths, row_len, seed):
    """Against the definition, written out with a plain list and no cleverness."""
    packed = pack_bestfit(np.array(lengths, dtype=np.int64), row_len=row_len, seed=seed)
    waiting = {doc: n + 1 for doc, n in enumerate(lengths) if n}
    for i in range(packed.num_rows):
        space = row_len
        for doc, start, stop, _ in packed.row(i):
            fitting = [size for size in waiting.values() if size <= space]
            size = waiting.pop(doc)
            assert start == lengths[doc] - (size - 1)
            if fitting:
                assert size == max(fitting)
                assert stop == lengths[doc]
            else:
                assert size == max([size, *waiting.values()])
                assert stop - start == space - 1
                waiting[doc] = size - (space - 1)
            space -= stop - start + 1
        assert space == 0 or not waiting
    assert not waiting


def test_bestfit_by_hand():
    # Row of 6 places. Sizes with BOS: 9, 4, 2. First row: 4 + 2 fill it. Second: 9 is cut to 6 (5 ids), third: the rest.
    packed = pack_bestfit(np.array([8, 3, 1]), row_len=6, seed=0)
    assert [packed.row(i) for i in range(3)] == [
        [Segment(1, 0, 3, True), Segment(2, 0, 1, True)],
        [Segment(0, 0, 5, True)],
        [Segment(0, 5, 8, True)],
    ]
    assert (packed.positions_padded, packed.num_crops) == (2, 1)


def test_bestfit_with_one_place_left_takes_bos_alone_and_goes_on():
    packed = pack_bestfit(np.array([3, 4]), row_len=5, seed=0)
    # 4 + 1 = 5 fills a row; 3 + 1 = 4 is alone in the last one, whose fifth place is padding.
    assert [packed.row(0), packed.row(1)] == [[Segment(1, 0, 4, True)], [Segment(0, 0, 3, True)]]
    packed = pack_bestfit(np.array([3, 3]), row_len=5, seed=0)
    (first, lone), (rest,) = packed.row(0), packed.row(1)
    assert (lone.start, lone.stop, lone.with_bos) == (0, 0, True)
    assert {first.doc, rest.doc} == {0, 1}
    assert packed.num_crops == 0


def test_the_shortest_row_makes_progress():
    packed = pack_bestfit(np.array([3]), row_len=2, seed=0)
    assert [packed.row(i) for i in range(packed.num_rows)] == [[Segment(0, k, k + 1, True)] for k in range(3)]


@both
def test_nothing_to_pack_gives_no_rows(pack):
    for lengths in ([], [0, 0]):
        packed = pack(np.array(lengths, dtype=np.int64), row_len=8, seed=0)
        assert (packed.num_rows, packed.tokens_used, packed.positions_total) == (0, 0, 0)


@both
def test_the_seed_decides_and_decides_all(pack):
    lengths = np.arange(1, 200) % 17 + 1
    one, same, other = (pack(lengths, row_len=16, seed=seed) for seed in (1, 1, 2))
    assert [one.row(i) for i in range(one.num_rows)] == [same.row(i) for i in range(same.num_rows)]
    assert [one.row(i) for i in range(one.num_rows)] != [other.row(i) for i in range(other.num_rows)]


def test_a_very_long_document_is_cut_into_full_rows():
    packed = pack_bestfit(np.array([1_000_000]), row_len=513, seed=0)
    assert packed.num_rows == -(-1_000_000 // 512)
    assert packed.positions_padded == packed.num_rows * 512 - 1_000_000
