"""Checkpoints: whole and verified, or not there. What the rest of the program uses to save one, find one, and load one.

`firstlight.train.manifest` says what the folder holds, `firstlight.train.writing` how it comes to be, and
`firstlight.train.saving` saves behind the training steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from firstlight.errors import CheckpointError
from firstlight.runtime.channel import Channel
from firstlight.train import manifest
from firstlight.train.manifest import (
    RNG_FILE,
    STATE_FILE,
    Report,
    checkpoint_name,
    find_latest_good,
    list_checkpoints,
    list_steps,
    tensor_files,
    verify,
)
from firstlight.train.reader import TensorReader
from firstlight.train.retention import retain
from firstlight.train.writing import Share, copy_to_host, write_checkpoint

__all__ = [
    "Loaded",
    "TensorReader",
    "checkpoint_name",
    "find_latest_good",
    "list_checkpoints",
    "list_steps",
    "load_checkpoint",
    "load_into",
    "retain",
    "save_checkpoint",
    "tensor_name",
    "verify",
]


class HasStateDict(Protocol):
    """A module."""

    def state_dict(self) -> Mapping[str, torch.Tensor]: ...


class HasStateTensors(Protocol):
    """An optimizer with state named per parameter."""

    def state_tensors(self) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, on the CPU: tensors by name, read when asked for, and ``state`` as it was given to the save.

    num_processes: how many wrote it.
    """

    path: Path
    step: int
    model: TensorReader
    optimizer: TensorReader
    state: dict[str, Any]
    rng: dict[str, torch.Tensor] = field(default_factory=dict)
    num_processes: int = 1


def tensor_name(name: str) -> str:
    """A parameter's own name, without the levels that torch.compile's wrapper puts into it.

    >>> tensor_name("_orig_mod.model.h.0._orig_mod.weight")
    'model.h.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    model: HasStateDict,
    optimizer: HasStateTensors,
    state: Mapping[str, Any],
    rng: Mapping[str, torch.Tensor] | None = None,
    report: Report | None = None,
) -> Path:
    """Write the checkpoint of ``step`` into ``directory`` and return its folder. One of the same step is replaced whole.

    For one process that has all of the model and the optimizer, and waits; see `firstlight.train.saving` for any other.

    state: JSON values. report: told of leftovers that could not be cleared.
    Raises CheckpointError, with what was saved before untouched, where the disk refuses (the message says how many bytes
    are needed and free) or a number is not finite; ValueError for a state that strict JSON cannot hold.
    """
    state_bytes = manifest.json_bytes(state)
    weights = {tensor_name(name): tensor for name, tensor in model.state_dict().items()}
    share = Share(copy_to_host(weights, {}), copy_to_host(optimizer.state_tensors(), {}), copy_to_host(rng or {}, {}))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    path, _ = write_checkpoint(
        directory, share, step=step, state=state_bytes, shapes={}, channel=Channel(), report=report
    )
    return path


def load_checkpoint(path: Path, *, verified: bool = False) -> Loaded:
    """Verify a checkpoint and open it. Tensors are read when they are asked for, whatever number of processes saved them.

    verified: it was verified just now, so only manifest and headers are looked at.
    Raises CheckpointError that names each bad file, and each tensor that is not there as a whole.
    """
    path = Path(path)
    problems = [] if verified else verify(path)
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {'; '.join(problems)}",
            hint="use another step; --resume takes the newest good one by itself",
        )
    content = manifest.read_manifest(path)
    files, shapes = content["files"], content.get("shapes", {})
    try:
        return Loaded(
            path=path,
            step=content["step"],
            model=TensorReader([path / name for name in tensor_files(files, "model")], shapes),
            optimizer=TensorReader([path / name for name in tensor_files(files, "optimizer")], shapes),
            state=json.loads((path / STATE_FILE).read_bytes()),
            rng=load_file(path / RNG_FILE) if RNG_FILE in files else {},
            num_processes=manifest.num_processes(files),
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error


def load_into(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Copy saved tensors into a model's own, in place, unless any of them is missing, extra, or of another shape or dtype.

    Raises CheckpointError, before anything is copied, that names them.
    """
    own = {tensor_name(name): tensor for name, tensor in target.items()}
    problems = [f"{name} is missing" for name in own if name not in source]
    problems += [f"{name} is not part of the model" for name in source if name not in own]
    problems += [
        f"{name} is {_kind(source, name)} instead of {_kind(own, name)}"
        for name in own
        if name in source and _kind(source, name) != _kind(own, name)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{what} is from another architecture: {'; '.join(problems[:3])}{more}",
            hint="resume with the settings that the run was started with",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(source[name])


def _kind(tensors: Mapping[str, torch.Tensor], name: str) -> str:
    if isinstance(tensors, TensorReader):
        dtype, shape = tensors.dtype(name), tensors.shape(name)
    else:
        dtype, shape = tensors[name].dtype, tensors[name].shape
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
