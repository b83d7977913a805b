"""From a group's rewards to advantages: how much better a sample is than the others that answered the same prompt.

    advantage_i = reward_i - mean of the group's rewards

The mean is the baseline: it takes out how hard the prompt is, and needs no second model that would learn it (the idea of
GRPO, arXiv 2402.03300; a sample's own reward in the mean only shrinks all advantages by (n - 1) / n). GRPO divides by the
group's standard deviation as well. That gives prompts which are nearly always or nearly never solved the largest weights
(Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv 2503.20783), so it is an option here and off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Scale = Literal["none", "std"]

SCALES: tuple[Scale, ...] = ("none", "std")

STD_FLOOR = 1e-4
"""Added to the standard deviation that is divided by, as in TRL and verl: rewards that differ by rounding stay small."""


def group_advantages(rewards: Sequence[float | None], *, scale: Scale = "none") -> list[float | None]:
    """Advantage of each sample of one group; None where its reward is None (such a sample is in no mean).

    Where nothing can be learnt (all rewards equal, or fewer than two), all advantages are exactly 0: a mean of equal
    numbers may be off by rounding, which is no signal.

    scale: ``std`` divides by the standard deviation of the rewards there are (n - 1 in its divisor).
    """
    valid = [reward for reward in rewards if reward is not None]
    if not has_signal(rewards):
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(valid) / len(valid)
    divisor = 1.0
    if scale == "std":
        variance = math.fsum((reward - mean) ** 2 for reward in valid) / (len(valid) - 1)
        divisor = math.sqrt(variance) + STD_FLOOR
    return [None if reward is None else (reward - mean) / divisor for reward in rewards]


def has_signal(rewards: Sequence[float | None]) -> bool:
    """Whether a group's rewards differ, so that some of its samples are better than others."""
    valid = {reward for reward in rewards if reward is not None}
    return len(valid) > 1
