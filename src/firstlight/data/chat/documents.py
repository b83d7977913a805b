"""Many conversations as ids, held in a few flat arrays: 2 bytes of id (4 above 65,536 ids) and 1 of mask for each token.

The arrays may lie in memory or be mapped from files (``tokenised.py``). Each conversation is a `Document`, as from `render`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np

from firstlight.tokens.document import Document

NO_TARGET = -1
_BLOCK_CONVERSATIONS = 16_384


@dataclass(frozen=True, eq=False)
class ConversationTokens(Sequence[Document]):
    """Conversations in a fixed order, or a selection of such.

    ids: (num_tokens,), unsigned, of all conversations one after another, without BOS. mask: bool, same shape, True where the
    id carries loss. offsets: int64, (num_stored + 1,). hashes: uint64, (num_stored,), of each conversation's content.
    sources: where each comes from, joined; source_offsets: int64, (num_stored + 1,), into its UTF-8 bytes.
    chosen: int64, which of the stored ones these are, in order.
    """

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    sources: np.ndarray
    source_offsets: np.ndarray
    chosen: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[Document]) -> ConversationTokens:
        """Documents put together. Without hashes of their texts, those of their ids stand for them."""
        lengths = [len(document) for document in documents]
        masks = [
            np.ones(len(document), bool) if document.loss_mask is None else np.asarray(document.loss_mask, bool)
            for document in documents
        ]
        assert [len(mask) for mask in masks] == lengths, "a loss mask has the shape of its ids"
        ids = np.concatenate([np.asarray(document.ids, np.int64) for document in documents] or [np.empty(0, np.int64)])
        assert len(ids) == 0 or ids.min() >= 0
        dtype = np.dtype("<u2" if len(ids) == 0 or int(ids.max()) < 65_536 else "<u4")
        names = [document.source.encode() for document in documents]
        hashes = [
            int.from_bytes(hashlib.blake2b(np.asarray(document.ids, "<i8").tobytes(), digest_size=8).digest(), "little")
            for document in documents
        ]
        return cls(
            ids=ids.astype(dtype),
            mask=np.concatenate(masks or [np.empty(0, bool)]),
            offsets=offsets_of(lengths),
            hashes=np.array(hashes, dtype=np.uint64),
            sources=np.frombuffer(b"".join(names), np.uint8),
            source_offsets=offsets_of([len(name) for name in names]),
            chosen=np.arange(len(documents), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> ConversationTokens: ...
    def __getitem__(self, index: int | slice) -> Document | ConversationTokens:
        if isinstance(index, slice):
            return replace(self, chosen=self.chosen[index])
        stored = int(self.chosen[index])
        span = slice(int(self.offsets[stored]), int(self.offsets[stored + 1]))
        return Document(self.ids[span].astype(np.int64), np.array(self.mask[span]), self.source(index))

    def source(self, index: int) -> str:
        """Where a conversation comes from: ``"file:row"``."""
        stored = int(self.chosen[index])
        span = slice(int(self.source_offsets[stored]), int(self.source_offsets[stored + 1]))
        return self.sources[span].tobytes().decode()

    def select(self, which: np.ndarray) -> ConversationTokens:
        """A part of the conversations. which: booleans or indices."""
        return replace(self, chosen=self.chosen[which])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Ids of each conversation, without BOS: int64, (N,)."""
        return np.diff(self.offsets)[self.chosen]

    @cached_property
    def first_targets(self) -> np.ndarray:
        """Place of the first id that carries loss in each conversation, NO_TARGET where there is none: int64, (N,)."""
        return self._targets[0]

    @cached_property
    def num_targets(self) -> np.ndarray:
        """Ids that carry loss in each conversation: int64, (N,)."""
        return self._targets[1]

    @cached_property
    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        first = np.full(len(self.offsets) - 1, NO_TARGET, dtype=np.int64)
        count = np.zeros(len(first), dtype=np.int64)
        # In blocks: the places of all targets at once would take 8 bytes for each.
        for block in range(0, len(first), _BLOCK_CONVERSATIONS):
            ends = self.offsets[block : block + _BLOCK_CONVERSATIONS + 1]
            places = np.flatnonzero(self.mask[ends[0] : ends[-1]]) + ends[0]
            below = np.searchsorted(places, ends)
            here = slice(block, block + len(ends) - 1)
            count[here] = np.diff(below)
            has_one = count[here] > 0
            first[here][has_one] = places[below[:-1][has_one]] - ends[:-1][has_one]
        return first[self.chosen], count[self.chosen]

    @cached_property
    def num_duplicates(self) -> int:
        """Conversations whose content is that of an earlier one."""
        return len(self) - len(np.unique(self.hashes[self.chosen]))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over the sorted content hashes: two scores on the same conversations have the same one."""
        return hashlib.sha256(np.sort(self.hashes[self.chosen]).astype("<u8").tobytes()).hexdigest()


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of some stretches of these lengths begins in their line, and where the line ends: int64, (N + 1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)
