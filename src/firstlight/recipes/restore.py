"""Go on from a run's newest good checkpoint: its weights, optimizer state and counts into the parts of this launch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from firstlight.errors import CheckpointError
from firstlight.model import sharding
from firstlight.recipes.assemble import Parts
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.train.checkpoint import find_latest_good, list_checkpoints, load_checkpoint, load_into
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState


@dataclass(frozen=True)
class Restored:
    """Where a launch goes on: the state, torch's random states, and the checkpoint they come from."""

    state: TrainState
    rng: dict[str, torch.Tensor]
    path: Path


def restore_newest(
    directory: Path, parts: Parts, *, runtime: Runtime, console: Console, spike: SpikeGuard | None
) -> Restored | None:
    """Load the newest good checkpoint in ``directory`` into ``parts`` and ``spike``, or None where there is none.

    Rank 0 verifies and chooses for all. Each damaged checkpoint on the way is named. A collective call.
    Raises CheckpointError for one from another architecture, or that this rank cannot see.
    """
    # Folders on disks of their own must not make ranks go on from different steps.
    found = find_latest_good(directory, console.warn) if runtime.is_main else None
    num_damaged = len(list_checkpoints(directory)) if runtime.is_main and found is None else 0
    name = runtime.broadcast_text(found.name if found else "/damaged" * (num_damaged > 0))
    if name == "/damaged":
        raise CheckpointError(
            f"{directory} has no good checkpoint: each of those that are there is damaged",
            hint="put one back from a copy, or start another run with --run; `firstlight checkpoint verify` says what is wrong "
            "with each. Nothing was changed",
        )
    if not name:
        return None
    path = directory / name
    # Rank 0 has read every byte of it just now.
    loaded = load_checkpoint(path, verified=True)
    if sharding.is_sharded(parts.model):
        sharding.load_pieces(parts.model, loaded.model)
    else:
        load_into(parts.model.state_dict(), loaded.model, what=str(path))
    parts.optimizer.load_state_tensors(loaded.optimizer)
    parts.optimizer.num_updates = int(loaded.state["num_updates"])
    if parts.scaler is not None and loaded.state["scaler"] is not None:
        parts.scaler.load_state(loaded.state["scaler"])
    if spike is not None and loaded.state.get("spike"):
        spike.load_state(loaded.state["spike"])
    return Restored(TrainState.from_dict(loaded.state["train"]), loaded.rng, path)
