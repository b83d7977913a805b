"""Claims of eval/windows.py, against windows and batches written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.data.batch import IGNORE
from firstlight.eval.windows import Window, batches, blocks, windows
from firstlight.tokens.document import Document


def test_a_document_becomes_windows_that_each_begin_with_bos() -> None:
    masked = Document(np.array([7, 8]), loss_mask=np.array([True, False]))
    found = list(windows([(5, Document(np.array([1, 2, 3, 4, 5]))), (6, masked)], bos_id=9, seq_len=2))
    assert [window.document for window in found] == [5, 5, 5, 6]
    assert [window.inputs.tolist() for window in found] == [[9, 1], [9, 3], [9], [9, 7]]
    assert [window.targets.tolist() for window in found] == [[1, 2], [3, 4], [5], [7, IGNORE]]


def window(row: int, length: int) -> Window:
    return Window(row, np.full(length, 1), np.full(length, 2))


def test_blocks_hold_so_many_windows_and_lose_none() -> None:
    found = list(blocks([window(i, 1) for i in range(7)], 3))
    assert [[w.document for w in block] for block in found] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("fixed", "shapes", "rows"),
    [
        # At most 2 * 64 tokens: two rows of 64, then four of 32.
        (False, [(2, 64), (4, 32), (1, 32)], [[3, 0], [4, 6, 2, 5], [1]]),
        (True, [(2, 64)] * 4, [[3, 0], [4, 6], [2, 5], [1]]),
    ],
)
def test_a_blocks_windows_share_batches_longest_first(fixed: bool, shapes: list, rows: list) -> None:
    lengths = [60, 1, 5, 64, 32, 3, 20]
    found = list(
        batches([window(i, n) for i, n in enumerate(lengths)], seq_len=64, batch_rows=2, bos_id=9, fixed_shape=fixed)
    )
    assert [batch.inputs_BT.shape for batch in found] == shapes
    assert [batch.documents for batch in found] == rows
    for batch in found:
        for row, document in enumerate(batch.documents):
            n = lengths[document]
            assert batch.targets_BT[row].tolist() == [2] * n + [IGNORE] * (batch.targets_BT.shape[1] - n)
            assert batch.inputs_BT[row].tolist() == [1] * n + [9] * (batch.inputs_BT.shape[1] - n)
        assert (batch.targets_BT[len(batch.documents) :] == IGNORE).all()
