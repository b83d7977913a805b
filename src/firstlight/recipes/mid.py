"""The recipe of mid-training: a base model learns the form of conversations, among text of the kind it knows.

All ids are targets, the user's words too: it is still pretraining, on other text. Rates as in the base run.
"""

from __future__ import annotations

from firstlight.recipes import record as records
from firstlight.recipes.launch import launch
from firstlight.recipes.settings import MidSettings
from firstlight.recipes.tuned import TunedRun


def train_mid(settings: MidSettings, *, given: frozenset[str] = frozenset()) -> records.RunRecord:
    """Mid-train a model as ``settings`` say, and return the run's record. See `launch`."""
    return launch(MidRun, settings, given=given)


class MidRun(TunedRun[MidSettings]):
    """Conversations and text, with loss on all ids."""

    recipe = "mid"
    loss = "all"
