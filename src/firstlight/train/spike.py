"""Whether a loss stands out from the recent ones so much that its update should not be made.

    limit = median + factor * max(1.4826 * MAD, SIGMA_FLOOR_NATS)         over the last ``window`` accepted losses

MAD is the median distance from the median; 1.4826 * MAD equals the standard deviation where losses are normal (Rousseeuw and
Croux 1993) and, unlike it, hardly moves when the window holds a few outliers. The idea of skipping by a window of 128 losses
and 6 deviations is that of OLMo-core's ``SkipStepOptimizer`` and levanter's ``SkipStepConfig``. What is different here, and why:

    - Only what is too high is refused. A loss that falls quickly is good news.
    - A loss that was refused, or is not a finite number, never enters the window. One NaN in a mean makes every later
      comparison false; that is how one bad batch can cost 128 good ones.
    - A flat curve has a tiny deviation, and its noise would look like spikes: hence the floor.
    - After a number of refusals in a row the level has moved (new data, a higher rate), and going on refusing would end
      learning: the next loss is accepted and the window begins anew with the losses at the new level.
    - The window is part of the checkpoint, so a resumed run decides as one that never stopped.

The loss that is judged is the sum over all ranks, the same number everywhere, so all ranks decide alike without a message.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from firstlight.errors import CheckpointError

MAD_TO_SIGMA = 1.4826
"""1 / the 0.75 quantile of the standard normal distribution."""

SIGMA_FLOOR_NATS = 0.02
"""With a factor of 6 no loss is refused that is less than 0.12 nats (13 % in perplexity) above the median."""

MOST_IN_A_ROW = 8
"""Refusals in a row after which the next loss is accepted as the new level."""


class SpikeGuard:
    """The recent accepted losses, and the verdict on the next one."""

    def __init__(
        self, window: int = 128, min_history: int = 32, factor: float = 6.0, *, most_in_a_row: int = MOST_IN_A_ROW
    ) -> None:
        """min_history: accepted losses before which nothing is refused."""
        self.window, self.min_history, self.factor, self.most_in_a_row = window, min_history, factor, most_in_a_row
        self._accepted: deque[float] = deque(maxlen=window)
        self._refused: list[float] = []

    def judge(self, loss_nats: float) -> str | None:
        """Why this step's update should not be made, or None. To be called once a step, before the update.

        None must be followed by `accept` where the update was then made. A refused loss is only remembered as one of a
        row of refusals. A loss that is no finite number is another guard's business; it is refused and leaves no trace.
        """
        if not math.isfinite(loss_nats):
            return f"loss is {loss_nats}"
        if len(self._accepted) < self.min_history or len(self._refused) >= self.most_in_a_row:
            return None
        median = statistics.median(self._accepted)
        mad = statistics.median(abs(loss - median) for loss in self._accepted)
        sigma = max(MAD_TO_SIGMA * mad, SIGMA_FLOOR_NATS)
        limit = median + self.factor * sigma
        if loss_nats <= limit:
            return None
        self._refused.append(loss_nats)
        return (
            f"loss spike: {loss_nats:.4f} nats is above {limit:.4f}, the median {median:.4f} of the last "
            f"{len(self._accepted)} plus {self.factor:g} times their deviation {sigma:.4f}"
        )

    def accept(self, loss_nats: float) -> None:
        """The update was made: the loss joins the window. After a long row of refusals it and they are the new window."""
        if not math.isfinite(loss_nats):
            return
        if len(self._refused) >= self.most_in_a_row:
            self._accepted.clear()
            self._accepted.extend(self._refused)
        self._refused.clear()
        self._accepted.append(loss_nats)

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint must hold, as JSON values (JSON keeps every bit of a float)."""
        return {"accepted": list(self._accepted), "refused": list(self._refused)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; of a window longer than this one's, the newest losses count. Raises CheckpointError."""
        for key in ("accepted", "refused"):
            losses = state.get(key)
            if not isinstance(losses, list) or not all(
                isinstance(loss, int | float) and math.isfinite(loss) for loss in losses
            ):
                raise CheckpointError(
                    f"spike guard state: {key} is {losses!r:.80}", hint="expected a list of finite losses"
                )
        self._accepted = deque((float(loss) for loss in state["accepted"]), maxlen=self.window)
        self._refused = [float(loss) for loss in state["refused"]]
