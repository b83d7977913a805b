"""A run by the clock: how the minutes are divided between preparing, training and the final score. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firstlight.errors import ConfigError
from firstlight.runtime.console import format_duration

# The last checkpoint, samples and the report.
CLOSING_S = 6.0
# A score of all validation documents may take this part of the run; else it takes the first documents that fit.
FINAL_SCORE_FRAC = 0.12
# A fifth more than was measured: the last window of a document is mostly padding, and the machine may be slower later.
SCORE_OVERHEAD = 1.2
# Optimizer, loader and logging beside the forward and backward passes that were timed.
STEP_OVERHEAD = 1.15


@dataclass(frozen=True)
class Budget:
    """Seconds of training, the steps that they should give, and the limit of the final score in tokens (None: all).

    notes: a sentence for each decision.
    """

    training_s: float
    num_steps: int
    final_tokens: int | None
    notes: tuple[str, ...]


def divide(
    minutes: float,
    *,
    spent_s: float,
    train_s: float,
    score_s: float,
    num_micro_batches: int,
    micro_batch_tokens: int,
    num_val_tokens: int,
    is_resumed: bool,
) -> Budget:
    """Divide ``minutes``, of which ``spent_s`` seconds have gone into preparing.

    train_s, score_s: measured seconds of one micro-batch in training and in scoring. micro_batch_tokens: of all processes.

    Raises ConfigError where no time is left to train; a resumed run, which may be at its end, gets at least one step.
    """
    asked_s = minutes * 60
    notes = []
    final_s = SCORE_OVERHEAD * score_s * num_val_tokens / micro_batch_tokens
    final_tokens = None
    if final_s > FINAL_SCORE_FRAC * asked_s:
        final_tokens = max(micro_batch_tokens, int(num_val_tokens * FINAL_SCORE_FRAC * asked_s / final_s))
        notes.append(
            f"the final score takes the first {final_tokens:,} of {num_val_tokens:,} validation tokens: all of them would "
            f"take {format_duration(final_s)} of the {minutes:g} minutes (`firstlight eval bpb` scores all)"
        )
        final_s = FINAL_SCORE_FRAC * asked_s
    step_s = STEP_OVERHEAD * train_s * num_micro_batches
    training_s = asked_s - spent_s - final_s - CLOSING_S
    if training_s < 3 * step_s and not is_resumed:
        raise ConfigError(
            f"--minutes {minutes:g}: preparing took {format_duration(spent_s)} and the final score takes "
            f"{format_duration(final_s)}, so no time is left to train",
            hint=f"give at least --minutes {math.ceil((spent_s + final_s + CLOSING_S + 20 * step_s) / 60)}",
        )
    training_s = max(step_s, training_s)
    num_steps = max(1, int(training_s / step_s))
    rate = num_micro_batches * micro_batch_tokens / step_s
    notes.append(
        f"{format_duration(training_s)} of training, about {num_steps:,} steps at the measured {rate:,.0f} tokens/s; "
        f"preparing took {format_duration(spent_s)} and the final score will take about {format_duration(final_s)}"
    )
    return Budget(training_s, num_steps, final_tokens, tuple(notes))
