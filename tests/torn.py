"""Small checkpoints for tests, ways to cut a save off at any operation, and ranks that are threads of one process."""

from __future__ import annotations

import builtins
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from firstlight.runtime.channel import Channel
from firstlight.train import writing
from firstlight.train.checkpoint import load_checkpoint, save_checkpoint


class Tensors:
    """A model or an optimizer that is nothing but its tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.tensors

    state_tensors = state_dict


def save(directory: Path, step: int, *, value: float | None = None, **options) -> Path:
    """A small checkpoint whose tensors all hold ``value`` (the step, where not given)."""
    filled = torch.full((5, 3), float(step if value is None else value))
    return save_checkpoint(
        directory,
        step=step,
        model=Tensors({"wte.weight": filled, "lm_head.weight": filled + 0.5}),
        optimizer=Tensors({"wte.weight/momentum": -filled}),
        state={"step": step, "train": {"best_bpb": None, "used_s": 0.1}},
        rng={"cpu": torch.arange(8, dtype=torch.uint8)},
        **options,
    )


def value_in(path: Path) -> float:
    return load_checkpoint(path).model["wte.weight"][0, 0].item()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Cut(BaseException):
    """Stands for a kill: no handler of ordinary errors sees it."""


class Operations:
    """Counts what a save does to the disk (writes, flushes, renames, folders, deletions), and ends it at the k-th."""

    def __init__(self, monkeypatch, *, cut_at: int | None = None, error: type[BaseException] = Cut) -> None:
        self.done: list[str] = []
        self.cut_at = cut_at
        self.error = error
        self.dead = False
        for module, name in ((os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "rmdir"), (os, "unlink")):
            self.wrap(monkeypatch, module, name)
        self.wrap(monkeypatch, writing, "save_file")
        opened = builtins.open

        def open_counting(file, mode="r", *args, **kwargs):
            if "w" in mode and str(file).endswith(".json"):
                self.tick(f"open {Path(file).name}")
            return opened(file, mode, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", open_counting)

    def wrap(self, monkeypatch, module, name) -> None:
        original = getattr(module, name)

        def counting(*args, **kwargs):
            if name == "save_file" and self.cut_at == len(self.done):
                original(*args, **kwargs)
                os.truncate(args[1], args[1].stat().st_size // 2)
            self.tick(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    def tick(self, what: str) -> None:
        # A dead process does nothing more, not even clean up.
        if self.dead:
            raise self.error
        if len(self.done) == self.cut_at:
            self.dead = self.error is Cut
            self.cut_at = None
            raise self.error(errno.ENOSPC, "No space left on device")
        self.done.append(what)


def number_of_operations(tmp_path, monkeypatch, action) -> int:
    with monkeypatch.context() as patch:
        operations = Operations(patch)
        action(tmp_path / "counting")
    assert {"save_file", "fsync", "rename", "open manifest.json"} <= set(operations.done)
    return len(operations.done)


# Ranks that are threads


class ThreadChannel(Channel):
    """A channel between threads of one process. ``group``: what they share."""

    def gather_texts(self, text: str) -> list[str]:
        self.group.texts[self.rank] = text
        self.group.barrier.wait(timeout=20)
        heard = list(self.group.texts)
        self.group.barrier.wait(timeout=20)
        return heard


class _Shared:
    def __init__(self, world_size: int) -> None:
        self.texts = [""] * world_size
        self.barrier = threading.Barrier(world_size)


def in_threads(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(channel, *args)`` in each of ``world_size`` ranks; what each returned or raised. One that raises leaves the others
    alone: their next word fails, as where a process has ended.
    """
    shared = _Shared(world_size)
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = function(ThreadChannel(rank, world_size, shared), *args)
        except BaseException as error:
            results[rank] = error
            if not isinstance(error, Exception):
                shared.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a rank hangs"
    return results


SHAPES = {"w/momentum": (7, 5), "b/momentum": (3,)}
"""Of the optimizer's tensors in `sharded`."""


def whole_tensors(value: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and optimizer state of a model of 38 numbers, all different, moved by ``value``."""
    weights = {"w": torch.arange(35.0).view(7, 5) + value, "b": torch.arange(3.0) - value}
    return weights, {f"{name}/momentum": tensor * 2 for name, tensor in weights.items()}


def share_of(rank: int, world_size: int, value: float) -> dict[str, dict[str, torch.Tensor]]:
    """What a rank brings to a save of `whole_tensors`: all weights on the first, a piece of w's state, b's on the last."""
    weights, state = whole_tensors(value)
    bounds = [35 * i // world_size for i in range(world_size + 1)]
    start, stop = bounds[rank], bounds[rank + 1]
    optimizer = {f"w/momentum[{start}:{stop}]": state["w/momentum"].view(-1)[start:stop]}
    if rank == world_size - 1:
        optimizer["b/momentum"] = state["b/momentum"]
    return {"model": weights if rank == 0 else {}, "optimizer": optimizer}


def assert_holds(path: Path, value: float) -> None:
    """The checkpoint is whole and holds `whole_tensors`, whatever number of ranks wrote it."""
    loaded = load_checkpoint(path)
    for found, expected in zip((loaded.model, loaded.optimizer), whole_tensors(value), strict=True):
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
