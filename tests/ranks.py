"""Several processes on gloo for a test: `run_ranks` starts them, gives each a Runtime, and brings back what each returned.

Processes are forked from a server that has torch loaded already, so one starts in about a tenth of a second.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

PRELOADED = ["torch", "torch.distributed", "torch.distributed.fsdp", "torch._dynamo", "firstlight.recipes.base"]


def server() -> Any:
    """The multiprocessing context whose processes have torch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def set_place(rank: int, world_size: int, port: int, **more: str) -> None:
    """Make this process what torchrun would have made it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", **more,
    )  # fmt: skip


def _child(function: Callable[..., Any], rank: int, world_size: int, port: int, results: Any, args: tuple) -> None:
    import torch

    from firstlight.runtime.context import open_runtime

    set_place(rank, world_size, port)
    # The test's own handlers and time limits are not this process's.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    try:
        with open_runtime(device="cpu", dtype="fp32", num_threads=1, timeout_s=60) as runtime:
            results.put((rank, None, function(runtime, *args)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        results.close()
        results.join_thread()
        sys.exit(1)


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60) -> list[Any]:
    """``function(runtime, *args)`` in ``world_size`` processes; what each returned, by rank.

    function: at the top level of a module. Raises AssertionError with every traceback where any of them failed or did not
    end in time; none of them outlives the call.
    """
    context = server()
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_child, args=(function, rank, world_size, port, results, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    values: dict[int, Any] = {}
    problems: list[str] = []
    try:
        for _ in processes:
            rank, problem, value = results.get(timeout=timeout_s)
            values[rank] = value
            if problem:
                problems.append(f"rank {rank}:\n{problem}")
    except queue.Empty:
        problems.append(f"only ranks {sorted(values)} of {world_size} ended within {timeout_s} s")
    finally:
        for process in processes:
            process.join(timeout=0.1 if problems else 10)
            with suppress(OSError, ValueError):
                process.kill()
    assert not problems, "\n".join(problems)
    return [values[rank] for rank in range(world_size)]


def joined(parts: Sequence[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Whole arrays from what the ranks hold under NAME or NAME[start:stop]; each element is held exactly once."""
    import numpy as np

    whole = {name: np.full(math.prod(shape), np.nan, dtype=np.float32) for name, shape in shapes.items()}
    for part in parts:
        for key, array in part.items():
            name, _, place = key.partition("[")
            start, stop = map(int, place[:-1].split(":")) if place else (0, array.size)
            assert np.isnan(whole[name][start:stop]).all(), f"{key} is held twice"
            whole[name][start:stop] = array.reshape(-1)
    for name, array in whole.items():
        assert not np.isnan(array).any(), f"a part of {name} is held by nobody"
    return {name: array.reshape(shapes[name]) for name, array in whole.items()}
