"""The seam between text and batches: one document as ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """Ids of one text, without BOS.

    ids: integer array, shape (num_tokens,).
    loss_mask: booleans of the same shape (True where the id is a target of the loss), or None where every id is.
    source: where the text came from, for people: ``"shard_00003.parquet:117"`` (file and row).
    """

    ids: np.ndarray
    loss_mask: np.ndarray | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids)
