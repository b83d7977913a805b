"""Where we run: one value, made once by a command's main function and passed down.

Nothing else in firstlight asks which device, dtype or rank it is on, and only this folder reads the environment.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from firstlight.errors import ConfigError
from firstlight.runtime import environment, meeting
from firstlight.runtime.channel import Channel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {v: k for k, v in DTYPES.items()}

LAST_WORD = "firstlight/last-word"

MEETING_TIMEOUT_S = 300.0
"""Processes are started together; a machine may still be loading torch from a slow disk."""


@dataclass(frozen=True)
class Runtime:
    """Device, matmul dtype and place among the processes.

    device: ``cpu``, ``cuda:N`` or ``mps``. compute_dtype: dtype of matmuls and activations (weights stay float32).
    rank, local_rank, world_size: 0, 0, 1 for a single process.
    notes: one sentence for each choice or fallback that was made, with its reason; part of the run record.
    store: torch's key-value store between the processes; None for one process.
    control, background: small values between the processes over CPU memory; the first is used by the main thread, the
        second by the thread that writes checkpoints.
    """

    device: torch.device
    compute_dtype: torch.dtype = torch.float32
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    num_threads: int = 1
    notes: tuple[str, ...] = field(default=())
    control: Channel = field(default=Channel())
    background: Channel = field(default=Channel())
    store: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype_name(self) -> str:
        return DTYPE_NAMES[self.compute_dtype]

    # Collectives. Each does nothing on one process, so callers never ask.

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes (a new tensor; the same one on a single process)."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total

    def sum_(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.SUM)
        return value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """Element-wise maximum over all processes (a new tensor; the same one on a single process)."""
        if self.world_size == 1:
            return value
        largest = value.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, on every process."""
        return self.control.broadcast_text(text)

    def largest(self, value: float) -> float:
        """The largest of the processes' numbers."""
        if self.world_size == 1:
            return value
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return float(self.max(torch.tensor(value, dtype=dtype, device=self.device)))

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def leave_word(self, text: str) -> None:
        """Leave a short text for the other processes before ending alone, without waiting for anybody."""
        if self.store is not None:
            # What cannot be left is not worth another error on the way out.
            with suppress(RuntimeError):
                self.store.set(LAST_WORD, text)

    def left_word(self) -> str:
        """What a process that has ended left, or nothing. Quick: where the store is gone as well, nothing."""
        if self.store is None:
            return ""
        with suppress(RuntimeError):
            return self.store.get(LAST_WORD).decode() if self.store.check([LAST_WORD]) else ""
        return ""

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it (before reading a clock)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def choose_device(requested: str) -> tuple[torch.device, str]:
    """Device for ``auto``, ``cpu``, ``cuda`` or ``mps``, and the reason.

    Raises ConfigError where the device asked for is not there.
    """
    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available()
    match requested:
        case "auto" if has_cuda:
            return torch.device("cuda", environment.local_rank()), "device cuda: an NVIDIA or AMD GPU was found"
        case "auto" if has_mps:
            return torch.device("mps"), "device mps: an Apple GPU was found"
        case "auto":
            return torch.device("cpu"), "device cpu: no GPU was found"
        case "cpu":
            return torch.device("cpu"), "device cpu: asked for"
        case "cuda" if has_cuda:
            return torch.device("cuda", environment.local_rank()), "device cuda: asked for"
        case "mps" if has_mps:
            return torch.device("mps"), "device mps: asked for"
        case "cuda" | "mps":
            raise ConfigError(
                f"--device {requested}: no such device was found by torch {torch.__version__}",
                hint="use --device cpu, or see `firstlight doctor` for what torch can see",
            )
        case _:
            raise ConfigError(f"--device {requested} is not known", hint="one of auto, cpu, cuda, mps")


@dataclass(frozen=True)
class Joined:
    """The processes have met. store: between them, None for one process. attempt: how many times they were started, from 1."""

    store: Any = None
    attempt: int = 1


def join() -> Joined:
    """Meet the processes that torchrun describes, if any. Raises TrainingStopped where not all come. A collective call."""
    own = environment.restart_count() + 1
    if environment.world_size() == 1:
        return Joined(attempt=own)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING_TIMEOUT_S)))
    met = meeting.meet(store, rank=rank, world_size=world_size, timeout_s=MEETING_TIMEOUT_S)
    fresh = dist.PrefixStore(met.word, store)
    # Rank 0's count for all. It may know better than the store, which is new where no agent keeps it.
    if rank == 0:
        fresh.set("attempt", str(max(met.number, own)))
    return Joined(fresh, int(fresh.get("attempt")))


@contextmanager
def open_runtime(
    *,
    device: str = "auto",
    dtype: str = "auto",
    num_threads: int | None = None,
    timeout_s: float = 1800.0,
    joined: Joined | None = None,
) -> Iterator[Runtime]:
    """Choose device and dtype, join the process group that torchrun describes (if any), and close it at the end.

    joined: from `join`, where that was needed before. timeout_s: after which a process that waits for another in a collective gives up with an error.

    Raises ConfigError for a device or dtype that this machine does not have.
    """
    from firstlight.runtime import precision

    world_size = environment.world_size()
    chosen_device, device_note = choose_device(device)
    threads = num_threads or environment.default_num_threads()
    torch.set_num_threads(threads)
    if chosen_device.type == "cuda":
        torch.cuda.set_device(chosen_device)
    compute_dtype, dtype_note = precision.choose_dtype(chosen_device, dtype)
    for_words: list[Any] = [None, None]
    store = None
    if world_size > 1:
        backend = "nccl" if chosen_device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        store = (joined or join()).store
        dist.init_process_group(backend, store=store, rank=environment.rank(), world_size=world_size, timeout=timeout)
        for_words = [dist.new_group(backend="gloo", timeout=timeout) for _ in range(2)]
        # Ranks must agree on the dtype even if their probes did not.
        choice = torch.tensor([list(DTYPES.values()).index(compute_dtype)], device=chosen_device)
        dist.broadcast(choice, src=0)
        agreed = list(DTYPES.values())[int(choice.item())]
        if agreed != compute_dtype:
            compute_dtype, dtype_note = agreed, f"dtype {DTYPE_NAMES[agreed]}: rank 0's choice"
    control = Channel(environment.rank(), world_size, for_words[0])
    background = Channel(environment.rank(), world_size, for_words[1], threading.Event())
    try:
        yield Runtime(
            device=chosen_device,
            compute_dtype=compute_dtype,
            rank=environment.rank(),
            local_rank=environment.local_rank(),
            world_size=world_size,
            num_threads=threads,
            notes=(device_note, dtype_note),
            control=control,
            background=background,
            store=store,
        )
    finally:
        if world_size > 1:
            dist.destroy_process_group()
