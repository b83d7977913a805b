"""Where a run is: everything besides tensors that the next step depends on. A value; each step makes a new one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from firstlight.config import from_dict
from firstlight.data.batch import Position
from firstlight.errors import CheckpointError, ConfigError
from firstlight.train.step import StepStats


@dataclass(frozen=True)
class TrainState:
    """Progress of a run.

    step: steps done, those with a refused update included (so data and schedule always move on together).
    position: where the next row of data comes from. tokens_seen: tokens given to the model, padding included.
    elapsed_s: seconds in training steps. used_s: seconds of the run by the clock, with scores and saves (minutes horizon).
    best_bpb, best_step: lowest score of those steps that have a checkpoint, and its step; None before the first.
    num_rollbacks: times that training went back to a checkpoint from a spike of the loss.
    num_skipped: updates refused so far. num_skipped_in_a_row: the latest ones without a good one between; see `train.guard`.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    tokens_seen: int = 0
    elapsed_s: float = 0.0
    used_s: float = 0.0
    best_bpb: float | None = None
    best_step: int | None = None
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0
    num_rollbacks: int = 0

    def after(self, stats: StepStats, *, num_tokens: int, mended: bool = False) -> TrainState:
        """State after one step that was given ``num_tokens`` tokens over all ranks.

        mended: the update was refused, and the float16 loss scale has been lowered for it; that is how a scale is found
        and says nothing against the run, so it does not count towards the refusals in a row.
        """
        was_skipped = stats.skipped is not None
        # A spike's update is left out by choice, and one without targets has nothing to apply: only numbers that are not
        # finite count towards the limit.
        counts = was_skipped and not mended and not stats.is_spike and not stats.is_empty
        in_a_row = self.num_skipped_in_a_row + counts if was_skipped else 0
        return replace(
            self,
            step=self.step + 1,
            position=stats.position,
            tokens_seen=self.tokens_seen + num_tokens,
            elapsed_s=self.elapsed_s + stats.elapsed_s,
            num_skipped=self.num_skipped + was_skipped,
            num_skipped_in_a_row=in_a_row,
        )

    def scored(self, bpb: float | None) -> TrainState:
        """State after a validation score at the present step; a score that is no finite number changes nothing."""
        if bpb is None or not math.isfinite(bpb) or (self.best_bpb is not None and bpb >= self.best_bpb):
            return self
        return replace(self, best_bpb=bpb, best_step=self.step)

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "state.json") -> TrainState:
        """Inverse of `to_dict`. Raises CheckpointError that names every missing, unknown or wrong value."""
        complete = asdict(cls())
        # Counts that came later are zero in older checkpoints.
        values = {"num_rollbacks": 0, **values}
        problems = [f"{key} is missing" for key in complete if key not in values]
        position = values.get("position")
        if isinstance(position, Mapping):
            problems += [f"position.{key} is missing" for key in complete["position"] if key not in position]
        state = cls()
        try:
            state = from_dict(cls, values, where=where)
        except ConfigError as error:
            problems.append(error.what)
        if problems:
            raise CheckpointError(
                f"{where} holds no training state: {'; '.join(problems)}",
                hint="the checkpoint is from another version of firstlight",
            )
        return state


def rng_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """States (bytes) of torch's global random generators: the CPU's, and the device's own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_tensors(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on from `rng_tensors`; the state of another kind of device is left out."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Whatever random numbers are drawn inside, the generators go on afterwards as if they had not been."""
    states = rng_tensors(device)
    try:
        yield
    finally:
        set_rng_tensors(states, device)
