"""One training step, for every stage: pretraining, fine-tuning and the rest differ in batches and numbers, not here.

    for each micro-batch: loss summed over its targets, backward        gradients of sums add up
    over all micro-batches and ranks: one sum of losses, one count of targets
    optimizer: gradients summed over ranks, times 1 / count, clipped, applied

Dividing once, by the count of all targets, gives every target the same weight however they are spread over micro-batches
and ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from firstlight.data.batch import Batch, Position
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime
from firstlight.train.loss import summed_cross_entropy
from firstlight.train.scaler import LossScaler


@dataclass(frozen=True)
class StepStats:
    """What one step did, over all micro-batches and ranks.

    loss_nats: mean over targets. grad_norm: global, before clipping; NaN where no gradient was measured.
    num_targets: targets that carried loss. elapsed_s: wall time of the step on this rank, with the device idle at both
    ends. position: the data position after the step's last micro-batch.
    skipped: why nothing was applied, or None. Weights, optimizer state and update count are then bit-unchanged.
    is_spike: it was ``refuse`` that said so. is_empty: no target of the batch carried loss, which is nobody's fault.
    num_tokens: places given to the model, padding included.
    compute_s: time of this rank's forward and backward passes, before it waited for any other rank.
    rank_compute_s, rank_memory_bytes: of every rank, where there are several and somebody has asked them.
    """

    loss_nats: float
    grad_norm: float
    num_targets: int
    elapsed_s: float
    position: Position
    skipped: str | None = None
    is_spike: bool = False
    compute_s: float = 0.0
    rank_compute_s: tuple[float, ...] = ()
    rank_memory_bytes: tuple[int, ...] = ()
    is_empty: bool = False
    num_tokens: int = 0


class _Config(Protocol):
    @property
    def softcap(self) -> float: ...


class _Head(Protocol):
    @property
    def weight(self) -> torch.Tensor: ...


class TrainableModel(Protocol):
    """What a step needs of a model: hidden states, and the head that the loss layer applies to them."""

    @property
    def config(self) -> _Config: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    @property
    def lm_head(self) -> _Head: ...
    def hidden(self, inputs_BT: torch.Tensor) -> torch.Tensor: ...


def train_step(
    model: TrainableModel,
    optimizer: MuonAdamW,
    micro_batches: Iterable[Batch],
    runtime: Runtime,
    hyper: Hyper,
    *,
    hidden: Callable[[torch.Tensor], torch.Tensor] | None = None,
    scaler: LossScaler | None = None,
    compiled_loss: bool = False,
    refuse: Callable[[float], str | None] | None = None,
) -> StepStats:
    """Train on ``micro_batches`` (this rank's share of one global batch) and return what happened.

    Every rank must call it, with at least one micro-batch; ranks may have different numbers of targets. A loss or a
    gradient that is not finite, on any rank, and a batch without targets change nothing and are reported in ``skipped``.

    hidden: in place of ``model.hidden`` (its compiled form). scaler: for float16; see `LossScaler`.
    compiled_loss: run the loss layer's kernel through torch.compile.
    refuse: given the mean loss of all ranks before the update; a reason in words leaves the update out.

    Raises ValueError for no micro-batch, RuntimeError for rows that cannot be cut into ``hyper.row_parts``, and what `summed_cross_entropy` raises.
    """
    start_s = time.perf_counter()
    hidden = hidden or model.hidden
    loss_scale = scaler.scale if scaler else 1.0
    totals = torch.zeros(
        3, dtype=torch.float64 if runtime.device.type != "mps" else torch.float32, device=runtime.device
    )
    position, num_tokens = None, 0
    for batch in micro_batches:
        B, T = batch.inputs_BT.shape
        # Targets stay as they are: the loss reads tokens one by one.
        x_BTD = hidden(batch.inputs_BT.reshape(B * hyper.row_parts, T // hyper.row_parts)).view(B, T, -1)
        loss = summed_cross_entropy(
            x_BTD,
            model.lm_head.weight,
            batch.targets_BT,
            batch.weights_BT,
            softcap=model.config.softcap,
            compute_dtype=model.compute_dtype,
            compiled=compiled_loss,
        )
        loss.backward(torch.full_like(loss, loss_scale))
        totals[:2] += torch.stack([loss.detach(), batch.num_targets()]).to(totals.dtype)
        num_tokens += batch.inputs_BT.numel()
        position = batch.position
    if position is None:
        raise ValueError("train_step was given no micro-batch")

    totals[2] = num_tokens
    compute_s = 0.0
    if runtime.world_size > 1:
        # The totals are read next, so the device is waited for in any case.
        runtime.synchronize()
        compute_s = time.perf_counter() - start_s
        runtime.sum_(totals)
    loss_sum, num_targets, num_tokens = totals.tolist()
    num_targets, num_tokens = round(num_targets), round(num_tokens)
    loss_nats = loss_sum / num_targets if num_targets else 0.0
    grad_norm, skipped, is_spike = math.nan, None, False
    if num_targets == 0:
        skipped = "the batch has no targets: every one is ignored"
    elif not math.isfinite(loss_nats):
        skipped = f"loss is {loss_nats}"
    elif refuse is not None and (reason := refuse(loss_nats)) is not None:
        skipped, is_spike = reason, True
    else:
        result = optimizer.step(hyper, grad_scale=1 / (num_targets * loss_scale))
        grad_norm = result.grad_norm
        if not result.applied:
            skipped = f"gradient norm is {grad_norm}"
        if scaler:
            scaler.update(overflowed=not result.applied)
            if skipped:
                skipped += f"; loss scale lowered from {loss_scale:g} to {scaler.scale:g}"
    optimizer.zero_grad()
    runtime.synchronize()
    elapsed_s = time.perf_counter() - start_s
    return StepStats(
        loss_nats, grad_norm, num_targets, elapsed_s, position, skipped, is_spike, compute_s, is_empty=num_targets == 0,
        num_tokens=num_tokens,
    )  # fmt: skip
