"""Matrices whose rows lie on W processes, brought together for Muon: the counterpart of a `Bucket` for sharded weights.

    reduce:  every process sends its rows of each summed gradient to the matrix's owner      about 1 / W of the bytes
    update:  the owner makes the update of the whole matrix
    share:   every process receives the update of its own rows, and applies it               about 1 / W of the bytes

Owners are dealt as for replicated weights, and keep the state of their matrices whole and under the same names. So a
checkpoint of the one kind goes on as the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from firstlight.model.sharding import local_piece, local_range
from firstlight.optim.buckets import Piece, place_whole
from firstlight.runtime.context import Runtime


def deal_matrices(shapes: Sequence[tuple[int, ...]], world_size: int) -> list[int]:
    """The owner of each matrix, as level as `place_whole` makes it.

    >>> deal_matrices([(8, 8), (8, 8), (32, 8)], 2)
    [1, 1, 0]
    """
    placement = place_whole([rows * columns for rows, columns in shapes], world_size)
    return [offset // placement.segment for offset in placement.offsets]


class MatrixShards:
    """Sharded matrices (float32, one device) and the two exchanges. All calls are collective.

    owners: rank of each matrix's owner. works: by index, for each matrix of which this rank is the owner, the (M, N) memory
    that has the summed gradient after `finish_reduce` and the update before `start_share`. updates: by index, this rank's
    rows of each update after `finish_share`, flat; until the next `start_reduce`.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        owners: Sequence[int],
        works: Mapping[int, torch.Tensor],
        *,
        runtime: Runtime,
    ) -> None:
        self.parameters = list(parameters)
        self.weights = [local_piece(parameter).tensor for parameter in parameters]
        self.updates: list[torch.Tensor] = []
        self._works = {index: work.view(-1) for index, work in works.items()}
        rank, ranks = runtime.rank, range(runtime.world_size)
        shapes = [tuple(parameter.shape) for parameter in parameters]

        def part(index: int, holder: int) -> tuple[int, int, int]:
            return index, *local_range(shapes[index], rank=holder, world_size=runtime.world_size)

        # One layout for both directions: what a rank sends to each owner, and what an owner receives from each rank.
        self._own, self._own_splits = _layout(
            [[part(i, rank) for i, owner in enumerate(owners) if owner == other] for other in ranks]
        )
        self._owned, self._owned_splits = _layout(
            [[part(i, other) for i, owner in enumerate(owners) if owner == rank] for other in ranks]
        )
        self._own_buffer = self._owned_buffer = torch.empty(0)
        self._work: Any = None

    @torch.no_grad()
    def start_reduce(self) -> None:
        """Send this rank's rows of the gradients to the owners, and drop them from the parameters."""
        self._make_buffers()
        for piece in self._own:
            parameter, slot = self.parameters[piece.index], _slot(self._own_buffer, piece)
            if parameter.grad is None:
                slot.zero_()
            else:
                slot.copy_(local_piece(parameter.grad).tensor)
                parameter.grad = None
        self._work = dist.all_to_all_single(
            self._owned_buffer, self._own_buffer, self._owned_splits, self._own_splits, async_op=True
        )

    @torch.no_grad()
    def finish_reduce(self) -> None:
        """Wait until the owned gradients are whole."""
        self._work.wait()
        for piece in self._owned:
            self._works[piece.index][piece.start : piece.stop].copy_(_slot(self._owned_buffer, piece))
        self.updates = []
        self._own_buffer = self._owned_buffer = torch.empty(0)

    @torch.no_grad()
    def start_share(self) -> None:
        """Send each rank its rows of the owned updates."""
        self._make_buffers()
        for piece in self._owned:
            _slot(self._owned_buffer, piece).copy_(self._works[piece.index][piece.start : piece.stop])
        self._work = dist.all_to_all_single(
            self._own_buffer, self._owned_buffer, self._own_splits, self._owned_splits, async_op=True
        )

    def finish_share(self) -> None:
        """Wait until the updates of this rank's rows are here."""
        self._work.wait()
        slots = {piece.index: _slot(self._own_buffer, piece) for piece in self._own}
        self.updates = [slots[index] for index in range(len(self.parameters))]
        self._own_buffer = self._owned_buffer = torch.empty(0)

    def _make_buffers(self) -> None:
        # Not kept between updates: forward and backward passes need the room.
        device = self.weights[0].device
        self._own_buffer = torch.empty(sum(self._own_splits), dtype=torch.float32, device=device)
        self._owned_buffer = torch.empty(sum(self._owned_splits), dtype=torch.float32, device=device)


def _slot(buffer: torch.Tensor, piece: Piece) -> torch.Tensor:
    return buffer[piece.offset : piece.offset + piece.stop - piece.start]


def _layout(messages: Sequence[Sequence[tuple[int, int, int]]]) -> tuple[list[Piece], list[int]]:
    """Messages of (index, start, stop) one after the other in a flat buffer: where each part lies, and each one's length."""
    pieces, lengths = [], []
    end = 0
    for message in messages:
        begin = end
        for index, start, stop in message:
            pieces.append(Piece(index, start, stop, end))
            end += stop - start
        lengths.append(end - begin)
    return pieces, lengths
