"""Conversations into rows: each whole and once, the rest padding, what is too long cut or left out, all of it counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.data.chat.documents import ConversationTokens
from firstlight.data.chat.packed import PackedConversations, pack_conversations
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, render
from firstlight.tokens.document import Document

BOS = 999
PAD = -1


def document(length: int, mask: list[int] | None = None, first: int = 0, source: str = "") -> Document:
    """Ids first, first + 1, ...; loss on the last where no mask is given."""
    ids = np.arange(first, first + length)
    loss = np.array(mask, dtype=bool) if mask is not None else np.arange(length) == length - 1
    return Document(ids, loss, source)


def pack(documents, *, seq_len: int, too_long: str = "cut", seed: int = 0) -> PackedConversations:
    return pack_conversations(documents, seq_len=seq_len, seed=seed, bos_id=BOS, too_long=too_long)  # type: ignore[arg-type]


def all_rows(packed: PackedConversations) -> tuple[list[list[int]], list[list[int]]]:
    every = np.arange(packed.num_rows)
    return packed.ids(every).tolist(), packed.targets(every).tolist()


def test_one_row_by_hand() -> None:
    packed = pack([document(3, [0, 1, 1], first=10, source="a:0")], seq_len=6)
    ids, targets = all_rows(packed)
    assert ids == [[BOS, 10, 11, 12, PAD, PAD, PAD]]
    assert targets == [[PAD, PAD, 11, 12, PAD, PAD, PAD]]
    assert packed.documents(np.array([0])) == ["a:0"]
    assert packed.ids(np.array([0])).dtype == packed.targets(np.array([0])).dtype == np.int64
    assert packed.counts.to_dict() == {
        "packed": 1, "cut": 0, "skipped_too_long": 0, "skipped_no_target": 0, "tokens": 3, "targets": 2, "tokens_cut": 0,
        "targets_cut": 0, "places": 7, "filled": 4,
    }  # fmt: skip


def test_two_that_fit_share_a_row_and_each_begins_with_bos() -> None:
    packed = pack([document(2, [0, 1], first=10), document(3, [1, 0, 1], first=20)], seq_len=6)
    ids, targets = all_rows(packed)
    assert ids in ([[BOS, 10, 11, BOS, 20, 21, 22]], [[BOS, 20, 21, 22, BOS, 10, 11]])
    assert sorted(i for i in targets[0] if i != PAD) == [11, 20, 22]
    assert all(target in (PAD, i) for target, i in zip(targets[0], ids[0], strict=True))


def test_a_conversation_that_just_fits_is_not_cut() -> None:
    packed = pack([document(6, first=10)], seq_len=6)
    assert all_rows(packed)[0] == [[BOS, 10, 11, 12, 13, 14, 15]]
    assert packed.counts.cut == 0


def test_a_longer_one_is_cut_at_the_rows_end() -> None:
    packed = pack([document(9, [0, 1, 1, 0, 0, 1, 1, 1, 1], first=10)], seq_len=6)
    ids, targets = all_rows(packed)
    assert ids == [[BOS, 10, 11, 12, 13, 14, 15]]
    assert targets == [[PAD, PAD, 11, 12, PAD, PAD, 15]]
    counts = packed.counts
    assert (counts.cut, counts.tokens_cut, counts.targets_cut, counts.targets) == (1, 3, 3, 3)
    assert "1 cut at the row's end (3 targets lost)" in counts.describe()


def test_a_longer_one_is_left_out_where_that_is_asked() -> None:
    packed = pack([document(9), document(2)], seq_len=6, too_long="skip")
    assert (packed.num_rows, packed.counts.packed, packed.counts.skipped_too_long) == (1, 1, 1)
    assert "1 skipped: longer than a row" in packed.counts.describe()


def test_what_keeps_no_target_is_left_out() -> None:
    """users.md 59 and 60: all masked; a user's turn that is longer than the row."""
    nothing = document(3, [0, 0, 0])
    question_too_long = document(9, [0] * 7 + [1, 1])
    first_target_past_the_end = document(7, [0] * 6 + [1])
    good = document(2, [0, 1])
    packed = pack([nothing, question_too_long, first_target_past_the_end, good], seq_len=6)
    assert (packed.num_rows, packed.counts.packed, packed.counts.skipped_no_target) == (1, 1, 3)
    assert "3 skipped: no target in what a row holds" in packed.counts.describe()
    last_place = pack([document(9, [0] * 5 + [1] * 4)], seq_len=6)
    assert [i for i in all_rows(last_place)[1][0] if i != PAD] == [5]


@pytest.mark.parametrize(
    ("documents", "too_long", "words"),
    [
        ([], "cut", "no conversation of 0 gives a row"),
        ([document(3, [0, 0, 0])], "cut", "1 have no target"),
        ([document(300)], "cut", "1 have no target in what a row holds"),
        ([document(300), document(200)], "skip", "2 are longer"),
        ([document(0)], "cut", "no conversation of 1"),
    ],
)
def test_no_row_at_all_is_an_error_and_not_an_endless_loop(documents, too_long, words) -> None:
    """users.md 59: row length 64, conversations of 200 tokens."""
    with pytest.raises(DataError, match=words):
        pack(documents, seq_len=64, too_long=too_long)


def test_wrong_values() -> None:
    with pytest.raises(ConfigError, match="--max-seq-len 0"):
        pack([document(2)], seq_len=0)
    with pytest.raises(ConfigError, match="--too-long drop"):
        pack([document(2)], seq_len=4, too_long="drop")


@st.composite
def conversations(draw: st.DrawFn) -> list[Document]:
    lengths = draw(st.lists(st.integers(0, 14), min_size=1, max_size=25))
    found = []
    for i, length in enumerate(lengths):
        mask = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
        found.append(document(length, mask, first=i * 20, source=f"d{i}"))
    return found


@settings(max_examples=50, deadline=None)
@given(conversations(), st.integers(1, 12), st.sampled_from(["cut", "skip"]), st.integers(0, 3))
def test_each_kept_conversation_is_in_one_row_once(documents, seq_len, too_long, seed) -> None:
    def is_kept(each: Document) -> bool:
        assert each.loss_mask is not None
        return bool(each.loss_mask[:seq_len].any()) and not (too_long == "skip" and len(each) > seq_len)

    kept = {i: each for i, each in enumerate(documents) if is_kept(each)}
    if not kept:
        with pytest.raises(DataError):
            pack(documents, seq_len=seq_len, too_long=too_long, seed=seed)
        return
    packed = pack(documents, seq_len=seq_len, too_long=too_long, seed=seed)
    ids, targets = all_rows(packed)
    seen: list[int] = []
    for row, (row_ids, row_targets) in enumerate(zip(ids, targets, strict=True)):
        assert len(row_ids) == seq_len + 1
        assert row_ids[0] == BOS
        assert any(target != PAD for target in row_targets[1:]), "a row without a target"
        end = row_ids.index(PAD) if PAD in row_ids else len(row_ids)
        assert set(row_ids[end:]) <= {PAD}
        assert set(row_targets[end:]) <= {PAD}
        starts = [place for place in range(end) if row_ids[place] == BOS]
        names = []
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            number = row_ids[start + 1] // 20
            original = documents[number]
            assert original.loss_mask is not None
            expected = original.ids[:seq_len].tolist()
            assert row_ids[start + 1 : stop] == expected
            mask = original.loss_mask[:seq_len].tolist()
            assert row_targets[start] == PAD
            assert row_targets[start + 1 : stop] == [i if m else PAD for i, m in zip(expected, mask, strict=True)]
            seen.append(number)
            names.append(f"d{number}")
        assert packed.documents(np.array([row])) == names
    assert sorted(seen) == sorted(kept)
    counts = packed.counts
    assert counts.packed == len(kept)
    assert counts.cut == sum(len(each) > seq_len for each in kept.values())
    assert counts.packed + counts.skipped_too_long + counts.skipped_no_target == len(documents)
    assert counts.tokens + counts.tokens_cut == sum(len(each) for each in kept.values())
    assert counts.targets + counts.targets_cut == sum(int(each.loss_mask.sum()) for each in kept.values())
    assert counts.targets == sum(target != PAD for row in targets for target in row)
    assert counts.filled == sum(i != PAD for row in ids for i in row)
    assert counts.places == packed.num_rows * (seq_len + 1)
    # First fit decreasing (Johnson 1973): at most 11/9 of the fewest rows, and one; the fewest is at least the sum.
    fewest = math.ceil(sum(1 + min(len(each), seq_len) for each in kept.values()) / (seq_len + 1))
    sizes = sorted(1 + min(len(each), seq_len) for each in kept.values())
    fewest = max(fewest, sum(2 * size > seq_len + 1 for size in sizes))
    assert packed.num_rows <= max(2 * fewest, 11 / 9 * fewest + 1)


def test_the_seed_decides_and_nothing_else() -> None:
    documents = [document(3 + i % 5, first=20 * i) for i in range(40)]
    rows = {seed: all_rows(pack(documents, seq_len=16, seed=seed)) for seed in (0, 1)}
    assert rows[0] == all_rows(pack(documents, seq_len=16, seed=0))
    assert rows[0] == all_rows(pack(ConversationTokens.of(documents), seq_len=16, seed=0))
    assert rows[0] != rows[1]


def test_within_a_row_short_ones_do_not_always_come_late() -> None:
    documents = [document(4 if i % 2 else 9, first=20 * i) for i in range(60)]
    ids, _ = all_rows(pack(documents, seq_len=14))
    firsts = {row.index(BOS, 1) - 1 for row in ids}
    assert firsts == {4, 9}


def test_an_epoch_has_each_row_once_in_another_order_each_time() -> None:
    packed = pack([document(5, first=20 * i) for i in range(50)], seq_len=6)
    walker = packed.walker(seed=3)
    epochs = []
    for epoch in range(3):
        found = [walker.at(epoch * 50 + i) for i in range(50)]
        assert len({id(rows) for rows, _ in found}) == 1
        indices = np.array([index for _, index in found])
        rows = found[0][0]
        epochs.append([row[1] for row in rows.ids(indices).tolist()])
        assert rows.targets(indices)[:, 5].tolist() == [first + 4 for first in epochs[-1]]
    assert all(sorted(epoch) == [20 * i for i in range(50)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_real_conversations_keep_their_ids(byte_tokenizer: Tokenizer) -> None:
    messages = [Message.of("user", "hi"), Message.of("assistant", "yo")]
    packed = pack_conversations(
        [render(messages, byte_tokenizer, source="x:0")], seq_len=10, seed=0, bos_id=byte_tokenizer.bos_id
    )
    assert packed.ids(np.array([0])).tolist() == [[256, 257, 104, 105, 258, 259, 121, 111, 260, PAD, PAD]]
    assert packed.targets(np.array([0])).tolist() == [[PAD] * 6 + [121, 111, 260, PAD, PAD]]
    assert packed.facts["rows"] == 1
    assert packed.facts["seq_len"] == 10


def test_where_all_are_too_long_the_length_of_the_shortest_is_told() -> None:
    documents = [Document(np.arange(n), np.ones(n, bool), f"d:{n}") for n in (9, 7)]
    with pytest.raises(DataError) as raised:
        pack_conversations(documents, seq_len=4, seed=0, bos_id=99, too_long="skip")
    assert "the shortest has 7 tokens" in (raised.value.hint or "")
