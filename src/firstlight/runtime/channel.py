"""Words and numbers between processes, over CPU memory: for what is not training, such as who saved what.

A channel has a process group of its own (gloo), so it may be used by another thread than the one that trains, while the
training group is busy. All processes must make the same calls on a channel in the same order; one thread uses it.

A thread that waits for a process which is gone may wait until the timeout: gloo does not always hear of it. So a channel that
another thread uses can be abandoned from the main thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

POLL_S = 0.002


@dataclass(frozen=True)
class Channel:
    """A group of processes that exchange small values. The default is one process, where every call is trivial.

    group: a gloo process group, or None for one process. abandoned: set by `abandon`; None where calls simply wait.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None
    abandoned: threading.Event | None = None

    def abandon(self) -> None:
        """End whatever a thread waits for on this channel, with RuntimeError there, and all calls to come.

        torch's own thread stays in the call, so that this process can only be ended at once afterwards (`os._exit`).
        """
        if self.abandoned is not None:
            self.abandoned.set()

    def _all_gather(self, buffers: list[torch.Tensor], own: torch.Tensor) -> None:
        if self.abandoned is None:
            dist.all_gather(buffers, own, group=self.group)
            return
        work = dist.all_gather(buffers, own, group=self.group, async_op=True)
        assert work is not None
        while not work.is_completed():
            if self.abandoned.wait(POLL_S):
                raise RuntimeError("the channel was abandoned: another process has ended")
        work.wait()

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
        self._all_gather(lengths, torch.tensor([data.numel()]))
        longest = max(int(length) for length in lengths)
        if longest == 0:
            return [""] * self.world_size
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: data.numel()] = data
        gathered = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        self._all_gather(gathered, padded)
        return [bytes(buffer[: int(length)].numpy()).decode() for buffer, length in zip(gathered, lengths, strict=True)]

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, of any length, on every process. A collective call."""
        return self.gather_texts(text if self.rank == 0 else "")[0]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every process's numbers, equally many, in the order of ranks, on every process. A collective call."""
        if self.world_size == 1:
            return [list(numbers)]
        gathered = [torch.zeros(len(numbers), dtype=torch.float64) for _ in range(self.world_size)]
        self._all_gather(gathered, torch.tensor(numbers, dtype=torch.float64))
        return [numbers_of_rank.tolist() for numbers_of_rank in gathered]

    def largest(self, value: float) -> float:
        """The largest of the processes' numbers. A collective call."""
        if self.world_size == 1:
            return value
        return max(number for [number] in self.gather_numbers([value]))

    def barrier(self) -> None:
        """Wait for all processes. A collective call."""
        self.largest(0.0)
