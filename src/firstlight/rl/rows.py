"""Answers as rows of a batch: which ids are targets, and no more padding than a micro-batch needs.

    ids        <bos> ... question ... <assistant_start>  a1   a2   [tool's output]   a3   <assistant_end>
    target of the place before:                          a1   a2      IGNORE         a3   <assistant_end>

Targets are the ids that the model chose itself, the end of its answer included. What the tool wrote was not chosen, so
there is nothing about it to make likelier.

Shapes: B rows, T tokens in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from firstlight.data.batch import IGNORE
from firstlight.rl.rollouts import Rollout

ROUND_TO = 32
"""Lengths are rounded up to a multiple: few different shapes, which kernels and caches of memory like."""


@dataclass(frozen=True)
class Row:
    """One answer to train on. inputs, targets, logprobs: equally long; logprobs are those it was sampled with."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float

    @property
    def num_targets(self) -> int:
        return sum(target != IGNORE for target in self.targets)


def row_of(rollout: Rollout, advantage: float) -> Row:
    """The row of an answer, all of its chosen ids being targets."""
    ids = (*rollout.prompt_ids, *rollout.ids)
    num_before = len(rollout.prompt_ids) - 1
    chosen = [IGNORE if forced else i for i, forced in zip(rollout.ids, rollout.is_forced, strict=True)]
    return Row(
        inputs=ids[:-1],
        targets=(*[IGNORE] * num_before, *chosen),
        logprobs=(*[0.0] * num_before, *rollout.logprobs),
        advantage=advantage,
    )


def empty_row(bos_id: int) -> Row:
    """A row without a target, as short as one can be. It takes the place of an answer from which nothing is learnt."""
    return Row((bos_id,), (IGNORE,), (0.0,), 0.0)


@dataclass(frozen=True)
class PaddedRows:
    """Rows of one micro-batch: int64 ids and targets, float32 advantages and sampling logprobs (0 where there are none)."""

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    advantages_BT: torch.Tensor
    logprobs_BT: torch.Tensor


def pad_rows(
    rows: Sequence[Row], *, bos_id: int, seq_len: int, fixed: bool = False, device: torch.device | str = "cpu"
) -> PaddedRows:
    """Rows side by side, filled with BOS and IGNORE behind their ends, which no place before them sees.

    T is that of the longest row, rounded up, and never more than seq_len; with ``fixed`` it is seq_len, for compiled code.
    """
    longest = max(len(row.inputs) for row in rows)
    assert longest <= seq_len, f"a row of {longest} tokens is longer than {seq_len}"
    T = seq_len if fixed else min(seq_len, -(-longest // ROUND_TO) * ROUND_TO)
    inputs_BT = torch.full((len(rows), T), bos_id, dtype=torch.int64)
    targets_BT = torch.full((len(rows), T), IGNORE, dtype=torch.int64)
    advantages_BT = torch.zeros(len(rows), T)
    logprobs_BT = torch.zeros(len(rows), T)
    for i, row in enumerate(rows):
        here = slice(0, len(row.inputs))
        inputs_BT[i, here] = torch.tensor(row.inputs)
        targets_BT[i, here] = torch.tensor(row.targets)
        logprobs_BT[i, here] = torch.tensor(row.logprobs)
        advantages_BT[i] = row.advantage
    advantages_BT = torch.where(targets_BT != IGNORE, advantages_BT, 0.0)
    tensors = (inputs_BT, targets_BT, advantages_BT, logprobs_BT)
    return PaddedRows(*(tensor.to(device) for tensor in tensors))
