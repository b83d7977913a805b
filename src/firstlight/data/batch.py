"""The seam between data and training: a batch, and the position in the data that it ends at.

Shapes: B rows (device batch), T tokens in a row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

IGNORE = -1
"""A target that carries no loss."""


@dataclass(frozen=True)
class Position:
    """Where the *next* row comes from. Everything that the loader needs to continue; nothing has to be replayed.

    epoch: passes over the data that are complete.
    shard_index: index into this epoch's (seeded) order of shards.
    row: row inside that shard's (seeded) order of rows.
    rows_consumed: global rows given out since the start of training, over all ranks and epochs.
    """

    epoch: int = 0
    shard_index: int = 0
    row: int = 0
    rows_consumed: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    inputs_BT: int64 ids. targets_BT: int64, the ids shifted by one, ``IGNORE`` where there is no loss; contiguous.
    weights_BT: float32 weights of the targets' losses, or None for all ones.
    position: the position after this batch (over all ranks), so that a checkpoint taken after it resumes at the next.
    """

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    position: Position
    weights_BT: torch.Tensor | None = None

    def num_targets(self) -> torch.Tensor:
        """Targets that carry loss, as a 0-d int64 tensor on the batch's device."""
        return (self.targets_BT != IGNORE).sum()
