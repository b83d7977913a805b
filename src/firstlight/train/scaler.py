"""Loss scaling for float16: small gradients would round to zero in it, so the loss is multiplied by a power of two.

The scale is lowered when a gradient overflows and raised after a long time without (Micikevicius et al., arXiv
1710.03740). Gradients here belong to the *sum* of a batch's losses, which is already 10^4 to 10^6 times the mean, so the
scale starts at 1 and may fall below it.
"""

from __future__ import annotations

from firstlight.errors import CheckpointError

STATE_KEYS = ("scale", "num_good")


class LossScaler:
    """The current scale. Every rank sees the same verdicts, so the scales of all ranks stay equal without a message."""

    def __init__(self, *, scale: float = 1.0, growth_interval: int = 1000, smallest: float = 2.0**-24) -> None:
        """growth_interval: good updates in a row after which the scale doubles. smallest: the scale never falls below."""
        self.scale = scale
        self.growth_interval = growth_interval
        self.smallest = smallest
        self.num_good = 0

    def update(self, *, overflowed: bool) -> None:
        """Take note of one update: halve the scale where it overflowed, double it after ``growth_interval`` good ones."""
        if overflowed:
            self.scale = max(self.scale / 2, self.smallest)
            self.num_good = 0
            return
        self.num_good += 1
        if self.num_good >= self.growth_interval:
            self.scale *= 2
            self.num_good = 0

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        return {"scale": self.scale, "num_good": self.num_good}

    def load_state(self, state: dict[str, float]) -> None:
        """Continue from `state`. Raises CheckpointError where it is not one."""
        if sorted(state) != sorted(STATE_KEYS):
            raise CheckpointError(f"loss scaler state has the keys {sorted(state)}", hint=f"expected {STATE_KEYS}")
        self.scale = float(state["scale"])
        self.num_good = int(state["num_good"])
