"""Conversations into rows of one length, once: whole ones, best fit, each after a BOS of its own; the rest is padding.

A row has L = T + 1 places: its inputs are the first T, its targets the last T. A conversation is never continued in another
row. One that is longer than a row is cut at the row's end or left out; one of which no target is left is left out. So every
row has a target. All of it is counted. Shapes: N rows, L places.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from firstlight.data.chat.documents import NO_TARGET, ConversationTokens
from firstlight.data.packing import PackedRows
from firstlight.data.rows import PAD
from firstlight.data.shuffle import mix_seed, seeded_permutation
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.document import Document

TooLong = Literal["cut", "skip"]


@dataclass(frozen=True)
class PackCounts:
    """What became of the conversations.

    packed: are in a row, each in one. cut: of these, the ones that lost their end. skipped_too_long: longer than a row, left
    out as asked. skipped_no_target: nothing of them carries loss, or nothing in the part that a row holds.
    tokens, targets: ids in rows without BOS, and those of them that carry loss. tokens_cut, targets_cut: lost by cutting.
    places: of all rows, L each. filled: places that hold an id or BOS.
    """

    packed: int
    cut: int
    skipped_too_long: int
    skipped_no_target: int
    tokens: int
    targets: int
    tokens_cut: int
    targets_cut: int
    places: int
    filled: int

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def describe(self) -> str:
        """One line for people."""
        filled = 100 * self.filled / self.places if self.places else 0.0
        parts = [f"{self.packed:,} conversations", f"{filled:.1f} % of the places filled"]
        for count, words in (
            (self.cut, f"cut at the row's end ({self.targets_cut:,} targets lost)"),
            (self.skipped_too_long, "skipped: longer than a row"),
            (self.skipped_no_target, "skipped: no target in what a row holds"),
        ):
            if count:
                parts.append(f"{count:,} {words}")
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class PackedConversations:
    """Rows of conversations, in the order of their packing. `line` shuffles them anew in each epoch.

    tokens: the conversations. rows: where each lies; its ``doc`` is an index into ``tokens``. bos_id: begins each.
    """

    tokens: ConversationTokens
    rows: PackedRows
    bos_id: int
    counts: PackCounts

    @property
    def num_rows(self) -> int:
        return self.rows.num_rows

    @property
    def row_len(self) -> int:
        """Places in a row, L."""
        return self.rows.row_len

    def ids(self, indices: np.ndarray) -> np.ndarray:
        """Ids of rows, int64, (N, L): BOS where a conversation begins, PAD where the row holds nothing."""
        ids_NL = np.full((len(indices), self.row_len), PAD, dtype=np.int64)
        for out_L, row in zip(ids_NL, indices.tolist(), strict=True):
            for place, span in self._spans(row):
                out_L[place] = self.bos_id
                out_L[place + 1 : place + 1 + span.stop - span.start] = self.tokens.ids[span]
        return ids_NL

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """As `ids`, but only what carries loss; the rest is IGNORE (which is PAD). A BOS carries none."""
        targets_NL = np.full((len(indices), self.row_len), PAD, dtype=np.int64)
        for out_L, row in zip(targets_NL, indices.tolist(), strict=True):
            for place, span in self._spans(row):
                values = np.where(self.tokens.mask[span], self.tokens.ids[span].astype(np.int64), PAD)
                out_L[place + 1 : place + 1 + len(values)] = values
        return targets_NL

    def documents(self, indices: np.ndarray) -> list[str]:
        """Where the conversations in these rows come from, in order, each once."""
        docs = [segment.doc for row in indices.tolist() for segment in self.rows.row(row)]
        return [self.tokens.source(doc) for doc in dict.fromkeys(docs)]

    def _spans(self, row: int) -> list[tuple[int, slice]]:
        """(place of BOS, where the ids lie) of each conversation of a row."""
        found, place = [], 0
        for doc, _, stop, _ in self.rows.row(row):
            begin = int(self.tokens.offsets[self.tokens.chosen[doc]])
            found.append((place, slice(begin, begin + stop)))
            place += 1 + stop
        return found

    def walker(self, seed: int, stop: threading.Event | None = None) -> ConversationWalker:
        """The endless line of these rows: all of them in each epoch, in an order of its own. stop: not needed here."""
        return ConversationWalker(self, seed)

    @property
    def facts(self) -> dict[str, Any]:
        """For records: rows, their length, and the counts."""
        return {"rows": self.num_rows, "seq_len": self.row_len - 1, **self.counts.to_dict()}


@dataclass(frozen=True, eq=False)
class ShuffledRows:
    """The rows of one epoch: row i here is packed row order[i]. The three methods are those of `PackedConversations`."""

    packed: PackedConversations
    order: np.ndarray

    def ids(self, indices: np.ndarray) -> np.ndarray:
        return self.packed.ids(self.order[indices])

    def targets(self, indices: np.ndarray) -> np.ndarray:
        return self.packed.targets(self.order[indices])

    def documents(self, indices: np.ndarray) -> list[str]:
        return self.packed.documents(self.order[indices])


class ConversationWalker:
    """Finds the n-th row of an endless line of packed conversations; epoch e has rows [e * num_rows, (e + 1) * num_rows)."""

    def __init__(self, packed: PackedConversations, seed: int) -> None:
        self._packed = packed
        self._seed = seed
        self._epoch = -1
        self._rows = ShuffledRows(packed, np.empty(0, dtype=np.int64))

    def at(self, n: int) -> tuple[ShuffledRows, int]:
        """The rows that hold the n-th, and its index in them."""
        epoch, index = divmod(n, self._packed.num_rows)
        if epoch != self._epoch:
            order = seeded_permutation(self._packed.num_rows, mix_seed(self._seed, "order", epoch))
            self._epoch, self._rows = epoch, ShuffledRows(self._packed, order)
        return self._rows, index


def pack_conversations(
    documents: Sequence[Document], *, seq_len: int, seed: int, bos_id: int, too_long: TooLong = "cut"
) -> PackedConversations:
    """Rows of T = seq_len targets from conversations (without BOS). The same documents and seed give the same rows.

    too_long: conversations that do not fit a row with their BOS are ``cut`` at its end, or all of them are left out
    (``skip``). Raises ConfigError for a row of less than one target, DataError where no row comes out.
    """
    if seq_len < 1:
        raise ConfigError(f"--max-seq-len {seq_len} is too small", hint="the smallest is 1")
    if too_long not in ("cut", "skip"):
        raise ConfigError(f"--too-long {too_long} is not known", hint="cut or skip")
    tokens = documents if isinstance(documents, ConversationTokens) else ConversationTokens.of(documents)
    row_len = seq_len + 1
    is_long = tokens.lengths + 1 > row_len
    first = tokens.first_targets
    has_target = (first != NO_TARGET) & (first < seq_len)
    is_skipped = is_long if too_long == "skip" else np.zeros(len(tokens), dtype=bool)
    kept = np.flatnonzero(has_target & ~is_skipped)
    rows = _pack_whole(np.minimum(tokens.lengths, seq_len), kept, row_len=row_len, seed=seed)
    cut = kept[is_long[kept]]
    targets_cut = int(sum(int(_target_count_after(tokens, doc, seq_len)) for doc in cut.tolist()))
    counts = PackCounts(
        packed=len(kept),
        cut=len(cut),
        skipped_too_long=int(is_skipped.sum()),
        skipped_no_target=int((~has_target & ~is_skipped).sum()),
        tokens=int(np.minimum(tokens.lengths, seq_len)[kept].sum()),
        targets=int(tokens.num_targets[kept].sum()) - targets_cut,
        tokens_cut=int((tokens.lengths[cut] - seq_len).sum()),
        targets_cut=targets_cut,
        places=rows.positions_total,
        filled=rows.positions_filled,
    )
    if rows.num_rows == 0:
        raise DataError(
            f"no conversation of {len(tokens):,} gives a row of {seq_len} tokens: {counts.skipped_too_long:,} are longer, "
            f"{counts.skipped_no_target:,} have no target in what a row holds",
            hint=f"the shortest has {min(tokens.lengths.tolist(), default=0):,} tokens: use a longer --max-seq-len"
            + (", or --too-long cut" if too_long == "skip" else ""),
        )
    return PackedConversations(tokens, rows, bos_id, counts)


def _target_count_after(tokens: ConversationTokens, doc: int, num_kept: int) -> int:
    stored = int(tokens.chosen[doc])
    return int(tokens.mask[int(tokens.offsets[stored]) + num_kept : int(tokens.offsets[stored + 1])].sum())


def _pack_whole(lengths: np.ndarray, docs: np.ndarray, *, row_len: int, seed: int) -> PackedRows:
    """Rows of whole documents, each after a BOS: a row takes the longest waiting one that still fits, until none does.

    (First fit decreasing: never more than 11/9 of the fewest rows and one (Johnson 1973). Ties are in a seeded order.)
    lengths: ids of each document without BOS, at most row_len - 1. docs: which of them to pack.
    """
    shuffled = docs[seeded_permutation(len(docs), mix_seed(seed, "conversations"))]
    by_size = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    edges = np.searchsorted(lengths[by_size] + 1, np.arange(row_len + 2))
    waiting = [by_size[edges[size] : edges[size + 1]].tolist() for size in range(row_len + 1)]
    sizes = sum(1 << size for size in range(row_len + 1) if waiting[size])  # bit s: a document of s places waits
    out: list[int] = []
    row_offsets = [0]
    while sizes:
        space = row_len
        while fitting := sizes & ((2 << space) - 1):
            size = fitting.bit_length() - 1
            out.append(waiting[size].pop())
            space -= size
            if not waiting[size]:
                sizes ^= 1 << size
        row_offsets.append(len(out))
    # Within a row the order is anew by the seed, or the short ones would always come late.
    keys = seeded_permutation(len(out), mix_seed(seed, "within rows"))
    row_of = np.repeat(np.arange(len(row_offsets) - 1), np.diff(row_offsets))
    order = np.array(out, dtype=np.int64)[np.lexsort((keys, row_of))]
    return PackedRows(
        row_len=row_len,
        lengths=lengths,
        doc=order,
        start=np.zeros(len(order), dtype=np.int64),
        stop=lengths[order],
        with_bos=np.ones(len(order), dtype=bool),
        row_offsets=np.array(row_offsets, dtype=np.int64),
    )
