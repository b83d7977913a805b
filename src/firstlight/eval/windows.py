"""How documents become windows, and windows batches: each id is predicted once, and short windows share a batch.

Shapes: B windows in a batch, T targets in a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from firstlight.data.batch import IGNORE
from firstlight.tokens.document import Document

BLOCK_BATCHES = 16
"""Windows are sorted by length inside blocks of this many full batches, so that short ones share a batch."""

WIDTH_STEP = 32
"""Widths of batches are multiples of this many tokens, so that there are few different shapes."""


@dataclass(frozen=True)
class Window:
    """At most T targets of the document of that row, and the ids before each."""

    document: int
    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class WindowBatch:
    """int64 (B, T) with BOS and `IGNORE` where a window is shorter or a row is empty; documents: the rows' documents."""

    documents: list[int]
    inputs_BT: np.ndarray
    targets_BT: np.ndarray


def windows(documents: Iterable[tuple[int, Document]], *, bos_id: int, seq_len: int) -> Iterator[Window]:
    """The windows of each (row, document), in order. A masked id is read, but is no target."""
    for row, document in documents:
        ids = np.asarray(document.ids).astype(np.int64)
        targets = ids if document.loss_mask is None else np.where(document.loss_mask, ids, IGNORE)
        for start in range(0, len(ids), seq_len):
            stop = min(start + seq_len, len(ids))
            inputs = np.empty(stop - start, np.int64)
            inputs[0] = bos_id
            inputs[1:] = ids[start : stop - 1]
            yield Window(row, inputs, targets[start:stop])


def blocks(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Windows in lists of ``size``; the last may be shorter."""
    block: list[Window] = []
    for window in windows:
        block.append(window)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def batches(
    windows: Sequence[Window], *, seq_len: int, batch_rows: int, bos_id: int, fixed_shape: bool
) -> Iterator[WindowBatch]:
    """The windows of a block, longest first, in batches of at most batch_rows * seq_len tokens with little padding."""
    ordered = sorted(windows, key=lambda window: -len(window.targets))
    start = 0
    while start < len(ordered):
        longest = len(ordered[start].targets)
        width = seq_len if fixed_shape else min(seq_len, -(-longest // WIDTH_STEP) * WIDTH_STEP)
        height = batch_rows if fixed_shape else batch_rows * seq_len // width
        chosen = ordered[start : start + height]
        shape = (batch_rows if fixed_shape else len(chosen), width)
        inputs_BT = np.full(shape, bos_id, np.int64)
        targets_BT = np.full(shape, IGNORE, np.int64)
        for row, window in enumerate(chosen):
            inputs_BT[row, : len(window.inputs)] = window.inputs
            targets_BT[row, : len(window.targets)] = window.targets
        yield WindowBatch([window.document for window in chosen], inputs_BT, targets_BT)
        start += len(chosen)
