"""The recipe of supervised fine-tuning: a model learns to answer.

Targets are what the assistant writes and the end of its turn; what it is asked, and what tools print, it only reads.
"""

from __future__ import annotations

from firstlight.recipes import record as records
from firstlight.recipes.launch import launch
from firstlight.recipes.settings import SftSettings
from firstlight.recipes.tuned import TunedRun


def train_sft(settings: SftSettings, *, given: frozenset[str] = frozenset()) -> records.RunRecord:
    """Fine-tune a model as ``settings`` say, and return the run's record. See `launch`."""
    return launch(SftRun, settings, given=given)


class SftRun(TunedRun[SftSettings]):
    """Conversations, with loss on the assistant's part."""

    recipe = "sft"
    loss = "masks"
