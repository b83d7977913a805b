"""Where a run is: everything besides weights and optimizer that a checkpoint must hold. A value; each step makes a new one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from firstlight.data.batch import Position
from firstlight.errors import CheckpointError
from firstlight.train.step import StepStats


@dataclass(frozen=True)
class TrainState:
    """Progress of a run.

    step: updates tried so far, the refused ones included (so data and schedule always move on together).
    position: where the next row of data comes from. tokens_seen: tokens given to the model, padding included.
    elapsed_s: seconds in training steps. used_s: seconds of the run by the clock, with scores and saves (minutes horizon).
    best_bpb, best_step: best validation score and its step, None before the first.
    num_skipped: updates refused so far. num_skipped_in_a_row: of these, the last ones without a good one between.
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

    def after(self, stats: StepStats, *, num_tokens: int) -> TrainState:
        """State after one step that was given ``num_tokens`` tokens over all ranks."""
        was_skipped = stats.skipped is not None
        return replace(
            self,
            step=self.step + 1,
            position=stats.position,
            tokens_seen=self.tokens_seen + num_tokens,
            elapsed_s=self.elapsed_s + stats.elapsed_s,
            num_skipped=self.num_skipped + was_skipped,
            num_skipped_in_a_row=self.num_skipped_in_a_row + 1 if was_skipped else 0,
        )

    def scored(self, bpb: float | None) -> TrainState:
        """State after a validation score at the present step; a score that is no number changes nothing."""
        if bpb is None or not math.isfinite(bpb) or (self.best_bpb is not None and bpb >= self.best_bpb):
            return self
        return replace(self, best_bpb=bpb, best_step=self.step)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """Inverse of `to_dict`. Raises CheckpointError for a missing or unknown key."""
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            odd = sorted(names ^ set(values))
            raise CheckpointError(
                f"the training state lacks or has unknown keys: {', '.join(odd)}",
                hint="the checkpoint is from another version of firstlight",
            )
        try:
            return cls(**{**values, "position": Position(**values["position"])})
        except TypeError as error:
            raise CheckpointError(f"the training state's data position cannot be read: {error}") from error
