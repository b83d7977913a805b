"""Words and numbers between processes, over CPU memory: for what is not training, such as who saved what.

A channel has a process group of its own (gloo), so it may be used by another thread than the one that trains, while the
training group is busy. All processes must make the same calls on a channel in the same order; one thread uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Channel:
    """A group of processes that exchange small values. The default is one process, where every call is trivial.

    group: a gloo process group, or None for one process.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    def gather_texts(self, text: str) -> list[str]:
        """Every process's text, of any length, in the order of ranks, on every process. A collective call.

        Raises RuntimeError (of torch) where another process has ended.
        """
        if self.world_size == 1:
            return [text]
        data = (
            torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
        )
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(lengths, torch.tensor([data.numel()]), group=self.group)
        longest = max(int(length) for length in lengths)
        if longest == 0:
            return [""] * self.world_size
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: data.numel()] = data
        gathered = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded, group=self.group)
        return [bytes(buffer[: int(length)].numpy()).decode() for buffer, length in zip(gathered, lengths, strict=True)]

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, of any length, on every process. A collective call."""
        return self.gather_texts(text if self.rank == 0 else "")[0]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every process's numbers, equally many, in the order of ranks, on every process. A collective call."""
        if self.world_size == 1:
            return [list(numbers)]
        gathered = [torch.zeros(len(numbers), dtype=torch.float64) for _ in range(self.world_size)]
        dist.all_gather(gathered, torch.tensor(numbers, dtype=torch.float64), group=self.group)
        return [numbers_of_rank.tolist() for numbers_of_rank in gathered]

    def largest(self, value: float) -> float:
        """The largest of the processes' numbers. A collective call."""
        if self.world_size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.group)
        return float(number)

    def barrier(self) -> None:
        """Wait for all processes. A collective call."""
        self.largest(0.0)
