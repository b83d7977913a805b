"""Document lengths -> rows. Pure functions: the same lengths, row length and seed always give the same rows.

A row has L = T + 1 places: its inputs are the first T, its targets the last T. A *piece* is a range of one document's
ids with BOS in front. ``pack_bestfit`` makes rows that begin with BOS; ``pack_stream`` cuts one long line of ids.
In both, every id of every document is a target exactly once, and only the last row can have empty places.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from firstlight.data.shuffle import mix_seed, seeded_permutation

PACKINGS = ("bestfit", "stream")


class Segment(NamedTuple):
    """Ids [start, stop) of document ``doc``, after BOS where ``with_bos``. May be BOS alone (start == stop)."""

    doc: int
    start: int
    stop: int
    with_bos: bool


@dataclass(frozen=True)
class PackedRows:
    """Rows as flat arrays of segments: row i is segments [row_offsets[i], row_offsets[i + 1]).

    doc, start, stop: int64, shape (num_segments,). with_bos: bool, same shape. row_offsets: int64, (num_rows + 1,).
    lengths: what was packed. row_len: places in a row, L.
    """

    row_len: int
    lengths: np.ndarray
    doc: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    with_bos: np.ndarray
    row_offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, i: int) -> list[Segment]:
        """Segments of row ``i``, in order."""
        span = slice(int(self.row_offsets[i]), int(self.row_offsets[i + 1]))
        fields = (self.doc[span], self.start[span], self.stop[span], self.with_bos[span])
        return [Segment(*segment) for segment in zip(*(field.tolist() for field in fields), strict=True)]

    @cached_property
    def tokens_total(self) -> int:
        """Ids in the documents (BOS not counted)."""
        return int(self.lengths.sum())

    @cached_property
    def tokens_used(self) -> int:
        """Ids that are a target in some row (BOS not counted). The first place of a row is never a target."""
        first = self.row_offsets[:-1]
        starts_inside = int((~self.with_bos[first] & (self.stop[first] > self.start[first])).sum())
        return int((self.stop - self.start).sum()) - starts_inside

    @property
    def positions_total(self) -> int:
        return self.num_rows * self.row_len

    @cached_property
    def positions_filled(self) -> int:
        """Places that hold an id or BOS; the others are padding at the end of the last row."""
        return int((self.stop - self.start).sum()) + int(self.with_bos.sum())

    @property
    def positions_padded(self) -> int:
        return self.positions_total - self.positions_filled

    @cached_property
    def num_crops(self) -> int:
        """Cuts inside a document: how often the end of a row separates two ids of one document."""
        inside = (self.start < self.stop) & (self.stop < self.lengths[self.doc])
        return int(inside.sum())


def _packed(row_len: int, lengths: np.ndarray, doc, start, stop, with_bos, row_offsets) -> PackedRows:
    def as_int64(values) -> np.ndarray:
        return np.asarray(values, dtype=np.int64)

    return PackedRows(
        row_len=row_len, lengths=lengths, doc=as_int64(doc), start=as_int64(start), stop=as_int64(stop),
        with_bos=np.asarray(with_bos, dtype=bool), row_offsets=as_int64(row_offsets),
    )  # fmt: skip


def _check(lengths: np.ndarray, row_len: int) -> np.ndarray:
    assert row_len >= 2, f"a row needs at least two places, an input and a target; got {row_len}"
    lengths = np.asarray(lengths, dtype=np.int64)
    assert lengths.ndim == 1
    assert (lengths >= 0).all()
    return lengths


def pack_bestfit(lengths: np.ndarray, *, row_len: int, seed: int) -> PackedRows:
    """Rows of whole documents where they fit; what must be cut goes on in a later row, after a BOS of its own.

    A row takes the largest waiting piece that fits the places left. Where none fits, the longest waiting piece is cut
    so that it fills the row exactly, and its tail waits like any other piece. (Where only one place is left it takes
    BOS: the end of the document before it is a target worth having.) Documents of no ids are left out.

    lengths: int, shape (num_documents,), ids of each document without BOS. row_len: L = T + 1, at least 2.
    """
    lengths = _check(lengths, row_len)
    shuffled = seeded_permutation(len(lengths), mix_seed(seed, "documents"))
    shuffled = shuffled[lengths[shuffled] > 0]
    remaining = (lengths + 1).tolist()  # places that the waiting piece of each document needs, BOS included
    starts = [0] * len(lengths)

    # Waiting pieces by size: a list for each size up to L, whose non-empty sizes are the bits of `sizes`, and a heap of
    # longer ones. A document has one waiting piece at a time, so its number is enough.
    by_size = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    num_short = int((lengths[by_size] < row_len).sum())
    short, sizes = by_size[:num_short], 0
    waiting: list[list[int]] = [[] for _ in range(row_len + 1)]
    edges = np.searchsorted(lengths[short] + 1, np.arange(row_len + 2))
    for size in np.unique(lengths[short] + 1).tolist():
        waiting[size] = short[edges[size] : edges[size + 1]].tolist()
        sizes |= 1 << size
    rank = {doc: i for i, doc in enumerate(by_size[num_short:].tolist())}
    longer = [(-remaining[doc], rank[doc], doc) for doc in rank]
    heapq.heapify(longer)

    out_doc: list[int] = []
    out_start: list[int] = []
    out_stop: list[int] = []
    row_offsets = [0]
    while sizes or longer:
        space = row_len
        while space:
            fitting = sizes & ((2 << space) - 1)
            if fitting:
                size = fitting.bit_length() - 1
                pieces = waiting[size]
                doc = pieces.pop()
                if not pieces:
                    sizes ^= 1 << size
                out_doc.append(doc)
                out_start.append(starts[doc])
                out_stop.append(starts[doc] + size - 1)
                space -= size
                continue
            if longer:
                doc = longer[0][2]
            elif sizes:
                doc = waiting[sizes.bit_length() - 1][-1]
            else:
                break  # nothing waits: the rest of the last row is padding
            start, taken = starts[doc], space - 1
            out_doc.append(doc)
            out_start.append(start)
            out_stop.append(start + taken)
            space = 0
            if longer:
                heapq.heappop(longer)
            else:
                size = remaining[doc]
                waiting[size].pop()
                if not waiting[size]:
                    sizes ^= 1 << size
            starts[doc] = start + taken
            size = remaining[doc] = remaining[doc] - taken
            if size > row_len:
                heapq.heappush(longer, (-size, rank[doc], doc))
            else:
                waiting[size].append(doc)
                sizes |= 1 << size
        row_offsets.append(len(out_doc))
    return _packed(row_len, lengths, out_doc, out_start, out_stop, np.ones(len(out_doc), dtype=bool), row_offsets)


def pack_stream(lengths: np.ndarray, *, row_len: int, seed: int) -> PackedRows:
    """All documents in a seeded order in one line, BOS before each, cut every T = row_len - 1 ids.

    Neighbouring rows share one id (the last target of one is the first input of the next), so rows begin anywhere in a
    document and every id but the first is a target once. Documents of no ids are left out.

    lengths: int, shape (num_documents,), ids of each document without BOS. row_len: L = T + 1, at least 2.
    """
    lengths = _check(lengths, row_len)
    order = seeded_permutation(len(lengths), mix_seed(seed, "documents"))
    order = order[lengths[order] > 0]
    if len(order) == 0:
        return _packed(row_len, lengths, [], [], [], [], [0])
    begins = np.concatenate([[0], np.cumsum(lengths[order] + 1)])  # of each document's BOS in the line
    total = int(begins[-1])
    num_rows = -(-(total - 1) // (row_len - 1))
    row_begin = np.arange(num_rows, dtype=np.int64) * (row_len - 1)
    row_end = np.minimum(row_begin + row_len, total)
    first = np.searchsorted(begins, row_begin, side="right") - 1
    last = np.searchsorted(begins, row_end - 1, side="right") - 1
    counts = last - first + 1
    row_offsets = np.concatenate([[0], np.cumsum(counts)])
    row_of = np.repeat(np.arange(num_rows), counts)
    index = first[row_of] + np.arange(len(row_of)) - row_offsets[row_of]
    begin = np.maximum(begins[index], row_begin[row_of])
    end = np.minimum(begins[index + 1], row_end[row_of])
    with_bos = begin == begins[index]
    start = begin - begins[index] - 1 + with_bos
    stop = end - begins[index] - 1
    return _packed(row_len, lengths, order[index], start, stop, with_bos, row_offsets)


def pack(packing: str, lengths: np.ndarray, *, row_len: int, seed: int) -> PackedRows:
    """Rows by the packing's name, one of ``PACKINGS``."""
    assert packing in PACKINGS, packing
    return (pack_bestfit if packing == "bestfit" else pack_stream)(lengths, row_len=row_len, seed=seed)
