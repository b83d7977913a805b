"""One line of rows from a mixture: exact shares, any row by its number, the same for all ranks and batch sizes."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.data.batch import IGNORE, Position
from firstlight.data.build import build_store
from firstlight.data.chat.line import MixtureLine, passes, rows_per_epoch
from firstlight.data.chat.packed import PackedConversations, pack_conversations
from firstlight.data.chat.text_rows import TextRows
from firstlight.data.loader import LineLoader
from firstlight.data.rows import PAD
from firstlight.tokens.document import Document

BOS = 256
T = 8


def packed(count: int, first: int) -> PackedConversations:
    """Rows of one conversation each, whose second id is first + its number; loss on its last two of five."""
    documents = [
        Document(np.array([first + i, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 1], dtype=bool), f"{first}:{i}")
        for i in range(count)
    ]
    return pack_conversations(documents, seq_len=T, seed=0, bos_id=BOS)


A, B = packed(7, 1000), packed(5, 2000)
COMPONENTS = [("a", A, 2.0), ("b", B, 1.0)]


def line(components=COMPONENTS, *, consumed: int = 0, loss: str = "masks", **changes) -> MixtureLine:
    arguments = {"seed": 4, "loss": loss, "position": Position(rows_consumed=consumed)} | changes
    return MixtureLine(components, **arguments)


def taken(walked: MixtureLine, count: int) -> list[int]:
    """First ids of the next rows, which name them."""
    return [int(first) for rows, indices in walked.take(count) for first in rows.ids(indices)[:, 1]]


def test_shares_are_exact_and_each_conversation_comes_once_a_pass() -> None:
    firsts = taken(line(), 3 * 35)
    for cycle in range(35):
        of_a = [first < 2000 for first in firsts[3 * cycle : 3 * cycle + 3]]
        assert sum(of_a) == 2
    of_a = [first for first in firsts if first < 2000]
    of_b = [first for first in firsts if first >= 2000]
    for values, size, begin in ((of_a, 7, 1000), (of_b, 5, 2000)):
        passes_of_it = [tuple(values[i : i + size]) for i in range(0, len(values), size)]
        assert all(sorted(each) == list(range(begin, begin + size)) for each in passes_of_it)
        assert len(set(passes_of_it)) > 1, "each pass has an order of its own"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 60))
def test_rows_depend_on_their_number_alone(sizes: list[int], consumed: int) -> None:
    whole = taken(line(), 150)
    walked = line(consumed=consumed)
    found = [first for size in sizes for first in taken(walked, size)]
    assert found == whole[consumed : consumed + sum(sizes)]
    assert walked.position.rows_consumed == consumed + sum(sizes)


def test_the_position_counts_passes_of_the_first_component() -> None:
    walked = line()
    for _ in range(40):
        list(walked.take(1))
        of_a = sum(first < 2000 for first in taken(line(), walked.position.rows_consumed))
        assert walked.position == Position(epoch=of_a // 7, rows_consumed=walked.position.rows_consumed)


def test_other_ints_of_a_position_do_not_matter() -> None:
    other = MixtureLine(COMPONENTS, seed=4, loss="masks", position=Position(3, 5, 7, 11))
    assert taken(other, 20) == taken(line(consumed=11), 20)


def test_the_seed_matters_and_the_name_does_not() -> None:
    assert taken(line(seed=5), 30) != taken(line(seed=4), 30)
    assert taken(line([("x", A, 2.0), ("y", B, 1.0)]), 30) == taken(line(), 30)


def test_loss_on_masks_or_on_all() -> None:
    (masked, indices), *_ = line([("a", A, 1.0)]).take(3)
    ids, targets = masked.ids(indices), masked.targets(indices)
    assert targets.tolist() == [[PAD] * 4 + [3, 4] + [PAD] * 3] * 3
    (everything, indices), *_ = line([("a", A, 1.0)], loss="all").take(3)
    assert everything.ids(indices).tolist() == ids.tolist()
    assert everything.targets(indices).tolist() == ids.tolist()
    assert everything.documents(indices) == masked.documents(indices)
    assert masked.documents(indices) == [f"1000:{first - 1000}" for first in ids[:, 1].tolist()]


def test_the_line_may_end() -> None:
    walked = line(num_rows=10)
    assert len(taken(walked, 7)) == 7
    assert not walked.at_end()
    assert len(taken(walked, 7)) == 3
    assert walked.at_end()
    assert taken(walked, 7) == []
    assert not line().at_end()


def test_rows_of_an_epoch_and_passes() -> None:
    # 7 rows of a at 2 in 3: the seventh is in the fourth cycle, at the place that the seed gives.
    count = rows_per_epoch(COMPONENTS, seed=4)
    assert 10 <= count <= 12
    firsts = taken(line(), count)
    assert sum(first < 2000 for first in firsts) == 7
    assert firsts[-1] < 2000
    assert passes(COMPONENTS, 210, seed=4) == {"a": 140 / 7, "b": 70 / 5}
    assert rows_per_epoch([("a", A, 1.0)], seed=0) == 7


@pytest.fixture
def text(three_files, byte_tokenizer, tmp_path) -> TextRows:
    store = build_store(three_files, byte_tokenizer, cache_dir=tmp_path / "cache", num_workers=0)
    return TextRows(store, "last", T, BOS)


def loader_rows(open_line, *, world_size: int, batch: int, steps: int, consumed: int = 0) -> tuple[list, list]:
    """Global rows (inputs, targets) put together from all ranks, and the positions behind each batch."""
    loaders = [
        LineLoader(
            open_line, bos_id=BOS, seq_len=T, device_batch_size=batch, rank=rank, world_size=world_size,
            position=Position(rows_consumed=consumed), prefetch=0,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    rows, positions = [], []
    for _ in range(steps):
        batches = [next(loader) for loader in loaders]
        for b in range(batch):
            rows += [(each.inputs_BT[b].tolist(), each.targets_BT[b].tolist()) for each in batches]
        assert len({each.position for each in batches}) == 1
        positions.append(batches[0].position)
    return rows, positions


@pytest.mark.parametrize("loss", ["masks", "all"])
def test_the_same_rows_for_all_ranks_and_batch_sizes_with_text_in_the_mixture(text: TextRows, loss: str) -> None:
    components = [("a", A, 1.0), ("text", text, 0.5), ("b", B, 0.5)]

    def open_line(position, stop):
        return MixtureLine(components, seed=2, loss=loss, position=position, stop=stop)

    one, positions = loader_rows(open_line, world_size=1, batch=1, steps=48)
    assert positions[-1] == Position(epoch=24 // 7, rows_consumed=48)
    for world_size, batch in ((1, 6), (2, 3), (2, 8), (3, 4), (4, 1)):
        steps = 48 // (world_size * batch)
        rows, _ = loader_rows(open_line, world_size=world_size, batch=batch, steps=steps)
        assert rows == one[: len(rows)]
    # Resumed with another layout after 20 rows.
    rows, _ = loader_rows(open_line, world_size=2, batch=2, steps=7, consumed=20)
    assert rows == one[20:48]
    kinds = Counter("text" if i[1] < 256 else "a" if i[1] < 2000 else "b" for i, _ in one)
    assert kinds == {"a": 24, "text": 12, "b": 12}
    for inputs, targets in one:
        if inputs[1] >= 1000 and loss == "masks":
            assert targets == [IGNORE] * 3 + [3, 4] + [IGNORE] * 3
        elif inputs[1] >= 1000:
            assert targets == [*inputs[1:6], IGNORE, IGNORE, IGNORE]
        else:
            # Text: each id is a target, in either way.
            assert targets[:-1] == [
                target if target == IGNORE else i for i, target in zip(inputs[1:], targets, strict=False)
            ]
        assert any(target != IGNORE for target in targets)


def test_every_row_has_a_target_so_that_the_mean_is_finite() -> None:
    """users.md 59: a batch of padding only gave a mean loss of NaN."""
    documents = [Document(np.arange(length), np.arange(length) > 60) for length in range(1, 200)]
    rows = pack_conversations(documents, seq_len=64, seed=0, bos_id=BOS)
    walked = MixtureLine([("x", rows, 1.0)], seed=0, loss="masks", position=Position())
    targets = torch.from_numpy(np.concatenate([each.targets(indices)[:, 1:] for each, indices in walked.take(400)]))
    assert bool(((targets != IGNORE).sum(dim=1) > 0).all())


def test_weights_are_taken_by_their_decimal_digits() -> None:
    firsts = taken(line([("a", A, 0.1), ("b", B, 0.3)]), 400)
    assert Fraction(sum(first < 2000 for first in firsts), 400) == Fraction(1, 4)
