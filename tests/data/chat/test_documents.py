"""Flat arrays of many conversations give back each of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.data.chat import documents
from firstlight.data.chat.documents import NO_TARGET, ConversationTokens, offsets_of
from firstlight.tokens.document import Document


def document(ids: list[int], mask: list[int] | None, source: str = "") -> Document:
    return Document(np.array(ids, dtype=np.int64), None if mask is None else np.array(mask, dtype=bool), source)


CONVERSATIONS = st.lists(
    st.lists(st.tuples(st.integers(0, 70_000), st.booleans()), max_size=8).map(
        lambda pairs: document([i for i, _ in pairs], [int(m) for _, m in pairs], f"é{len(pairs)}")
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(CONVERSATIONS, st.integers(1, 5))
def test_each_is_given_back_with_its_facts(given_documents: list[Document], block: int) -> None:
    tokens = ConversationTokens.of(given_documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_BLOCK_CONVERSATIONS", block)
        firsts, counts = tokens.first_targets.tolist(), tokens.num_targets.tolist()
    assert len(tokens) == len(given_documents)
    for i, expected in enumerate(given_documents):
        assert expected.loss_mask is not None
        got = tokens[i]
        assert got.ids.tolist() == expected.ids.tolist()
        assert got.ids.dtype == np.int64
        assert got.loss_mask is not None
        assert got.loss_mask.tolist() == expected.loss_mask.tolist()
        assert got.source == expected.source
        assert tokens.lengths[i] == len(expected)
        mask = expected.loss_mask.tolist()
        assert counts[i] == sum(mask)
        assert firsts[i] == (mask.index(True) if True in mask else NO_TARGET)


def test_two_bytes_for_small_ids_four_for_large_ones_and_one_of_mask() -> None:
    small = ConversationTokens.of([document([65_535, 1], None)])
    large = ConversationTokens.of([document([65_536, 1], None)])
    assert (small.ids.itemsize, large.ids.itemsize, small.mask.itemsize) == (2, 4, 1)


def test_without_a_mask_each_id_is_a_target() -> None:
    tokens = ConversationTokens.of([document([1, 2, 3], None)])
    assert tokens.num_targets.tolist() == [3]
    assert tokens.first_targets.tolist() == [0]


def test_a_selection_keeps_order_sources_and_facts() -> None:
    tokens = ConversationTokens.of([document([i] * (i + 1), [0] * i + [1], f"s{i}") for i in range(5)])
    chosen = tokens.select(np.array([4, 0, 2]))
    assert [chosen[i].source for i in range(3)] == ["s4", "s0", "s2"]
    assert chosen.lengths.tolist() == [5, 1, 3]
    assert chosen.first_targets.tolist() == [4, 0, 2]
    assert chosen.num_targets.tolist() == [1, 1, 1]
    assert [each.ids.tolist() for each in chosen] == [[4] * 5, [0], [2] * 3]
    assert [each.source for each in chosen[1:]] == ["s0", "s2"]
    assert chosen[-1].source == "s2"
    by_mask = tokens.select(np.array([False, True, False, True, False]))
    assert by_mask.lengths.tolist() == [2, 4]


def test_copies_are_counted_and_the_hash_is_of_the_set() -> None:
    tokens = ConversationTokens.of([document([1, 2], None), document([3], None), document([1, 2], None)])
    assert tokens.num_duplicates == 1
    reordered = tokens.select(np.array([2, 1, 0]))
    assert reordered.content_hash == tokens.content_hash
    assert tokens.select(np.array([0, 1])).content_hash != tokens.content_hash
    by_hand = hashlib.sha256(b"".join(int(h).to_bytes(8, "little") for h in sorted(tokens.hashes.tolist())))
    assert tokens.content_hash == by_hand.hexdigest()


def test_offsets() -> None:
    assert offsets_of([3, 0, 2]).tolist() == [0, 3, 3, 5]
    assert offsets_of([]).tolist() == [0]
