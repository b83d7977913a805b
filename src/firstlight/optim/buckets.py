"""Flat buffers that W processes share (ZeRO-2): each owns one segment of the weights, and only its optimizer state.

    reduce:  every process packs its gradients, keeps the sum over all processes of its own segment      (W - 1) / W of the bytes
    update:  the owner updates its segment
    share:   every process receives the other segments                                                   (W - 1) / W of the bytes

That is the traffic of one all-reduce, with 1 / W of the optimizer's state and arithmetic on each process (Rajbhandari et
al., arXiv 1910.02054). Parameters become views of the flat buffer, so that the weights arrive in their place.

The sum runs over the ranks in their order, so the same number of processes gives the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from firstlight.runtime.context import Runtime

ALIGNMENT = 16
"""Parameters and segments begin at multiples of this many elements (64 bytes), for vector instructions."""


@dataclass(frozen=True)
class Placement:
    """Where parameters lie in a flat buffer of ``world_size`` segments of ``segment`` elements each.

    offsets: first element of each parameter.
    """

    offsets: tuple[int, ...]
    segment: int


@dataclass(frozen=True)
class Piece:
    """The part of parameter ``index`` that lies in one segment: its flat elements ``start`` to ``stop``, at ``offset``
    of the segment."""

    index: int
    start: int
    stop: int
    offset: int


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def place_whole(sizes: Sequence[int], world_size: int) -> Placement:
    """Each parameter whole in one segment, the largest first to the segment that has least; in a segment they keep their order.

    >>> place_whole([64, 64, 64], 2)
    Placement(offsets=(0, 128, 64), segment=128)
    """
    loads = [0] * world_size
    owner = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owner[index] = loads.index(min(loads))
        loads[owner[index]] += _aligned(sizes[index])
    segment = max(loads)
    ends = [rank * segment for rank in range(world_size)]
    offsets = []
    for index, rank in enumerate(owner):
        offsets.append(ends[rank])
        ends[rank] += _aligned(sizes[index])
    return Placement(tuple(offsets), segment)


def place_flat(sizes: Sequence[int], world_size: int) -> Placement:
    """One after the other, cut into equal segments wherever that falls.

    >>> place_flat([64, 64, 64], 2)
    Placement(offsets=(0, 64, 128), segment=96)
    """
    offsets = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end += _aligned(size)
    return Placement(tuple(offsets), _aligned(-(-end // world_size)))


def pieces_of(sizes: Sequence[int], placement: Placement, rank: int) -> list[Piece]:
    """What of the parameters lies in a rank's segment.

    >>> pieces_of([64, 64, 64], place_flat([64, 64, 64], 2), 1)
    [Piece(index=1, start=32, stop=64, offset=0), Piece(index=2, start=0, stop=64, offset=32)]
    """
    first = rank * placement.segment
    found = []
    for index, (offset, size) in enumerate(zip(placement.offsets, sizes, strict=True)):
        start, stop = max(offset, first), min(offset + size, first + placement.segment)
        if start < stop:
            found.append(Piece(index, start - offset, stop - offset, start - first))
    return found


class Bucket:
    """Parameters (float32, one device) in a shared flat buffer, and the two exchanges. All calls are collective.

    weights: (world_size * segment,), of which the parameters are views from now on. grads: (segment,), the summed
    gradients of this rank's segment after `finish_reduce`, until the next `start_reduce`.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], placement: Placement, *, runtime: Runtime) -> None:
        self.parameters, self.placement = list(parameters), placement
        self.rank, self.world_size = runtime.rank, runtime.world_size
        device = parameters[0].device
        num_elements = placement.segment * runtime.world_size
        # Zeros, not empty: what lies between parameters must not be NaN by chance.
        self.weights = torch.zeros(num_elements, dtype=torch.float32, device=device)
        self._packed = torch.zeros(num_elements, dtype=torch.float32, device=device)
        # NCCL adds while it receives; on gloo its reduce-scatter took three times as long as receiving and adding here.
        self._received = torch.empty_like(self.weights) if device.type == "cpu" else None
        self.grads = torch.zeros(placement.segment, dtype=torch.float32, device=device)
        self._slots = []
        self._work: list[Any] = []
        for parameter, offset in zip(self.parameters, placement.offsets, strict=True):
            stop = offset + parameter.numel()
            slot = self.weights[offset:stop].view(parameter.shape)
            slot.copy_(parameter.data)
            parameter.data = slot
            self._slots.append(self._packed[offset:stop].view(parameter.shape))

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, padding included."""
        return self.weights.nbytes

    def segment_of(self, rank: int) -> torch.Tensor:
        """A rank's segment of the weights, (segment,)."""
        return self.weights[rank * self.placement.segment : (rank + 1) * self.placement.segment]

    def zero_grads(self) -> None:
        """Gradients of zero, into which backward passes add: they are packed already, and in memory only once."""
        self._packed.zero_()
        for parameter, slot in zip(self.parameters, self._slots, strict=True):
            parameter.grad = slot

    @torch.no_grad()
    def start_reduce(self) -> None:
        """Send each rank its segment of the gradients, which the parameters lose."""
        for parameter, slot in zip(self.parameters, self._slots, strict=True):
            if parameter.grad is None:
                slot.zero_()
            elif parameter.grad.data_ptr() != slot.data_ptr():
                slot.copy_(parameter.grad)
            parameter.grad = None
        if self._received is None:
            self._work = [dist.reduce_scatter_single(self.grads, self._packed, async_op=True)]
        else:
            self._work = [dist.all_to_all_single(self._received, self._packed, async_op=True)]

    def finish_reduce(self) -> None:
        """Wait until ``grads`` has the sum over all ranks."""
        self._wait()
        if self._received is not None:
            torch.sum(self._received.view(self.world_size, -1), 0, out=self.grads)

    def start_share(self) -> None:
        """Send this rank's segment of the weights to the others, and receive theirs."""
        own = self.segment_of(self.rank)
        if self.weights.device.type != "cpu":
            self._work = [dist.all_gather_single(self.weights, own, async_op=True)]
            return
        # On gloo its all-gather took three times as long as this.
        for distance in range(1, self.world_size):
            to, source = (self.rank + distance) % self.world_size, (self.rank - distance) % self.world_size
            self._work.append(dist.isend(own, to))
            self._work.append(dist.irecv(self.segment_of(source), source))

    def finish_share(self) -> None:
        """Wait until all weights are here."""
        self._wait()

    def _wait(self) -> None:
        work, self._work = self._work, []
        for handle in work:
            handle.wait()
