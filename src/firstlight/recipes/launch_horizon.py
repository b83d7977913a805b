"""When this launch of a run ends: after counted steps, or by the clock with what preparing has left of the minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from firstlight.recipes import budget
from firstlight.recipes.assemble import Rates
from firstlight.recipes.settings import RunSettings
from firstlight.runtime.context import Runtime
from firstlight.train.horizon import ClockHorizon, Curve, StepHorizon
from firstlight.train.plan import Plan, interval


def horizon_of_launch(
    plan: Plan,
    settings: RunSettings,
    rates: Rates | None,
    *,
    used_s: float,
    is_resumed: bool,
    num_val_tokens: Callable[[], int],
    spent_s: Callable[[], float],
    runtime: Runtime,
) -> tuple[StepHorizon | ClockHorizon, int | None, Plan, tuple[str, ...]]:
    """The horizon, the limit of the final score in tokens (None: all), the plan with measured intervals, and notes.

    rates: as measured; needed for minutes only. used_s: seconds of the run before this launch. spent_s: seconds of this
    launch so far. A collective call.
    """
    curve = Curve(
        plan.warmup_frac, plan.warmdown_frac, plan.final_lr_frac, plan.momentum_start, plan.momentum_end,
        plan.weight_decay, plan.grad_clip, short_rows_frac=plan.short_rows_frac,
    )  # fmt: skip
    if plan.num_steps is not None:
        return StepHorizon(plan.num_steps, curve), None, plan, ()
    assert rates is not None
    # Each rank has measured its own times, and all must save, score and end at the same steps: the slowest decides.
    train_s, score_s = runtime.largest(rates.train_s), runtime.largest(rates.score_s)
    divided = budget.divide(
        plan.horizon.value,
        spent_s=runtime.largest(spent_s()),
        train_s=train_s,
        score_s=score_s,
        num_micro_batches=plan.num_micro_batches,
        micro_batch_tokens=plan.device_batch_size * plan.seq_len * runtime.world_size,
        num_val_tokens=num_val_tokens(),
        is_resumed=is_resumed,
    )
    steps = divided.num_steps
    plan = replace(
        plan,
        estimated_steps=steps,
        eval_every=interval(steps, 10) if settings.eval_every is None else plan.eval_every,
        sample_every=interval(steps, 4) if getattr(settings, "sample_every", 0) is None else plan.sample_every,
        save_every=interval(steps, 10) if settings.save_every is None else plan.save_every,
    )
    horizon = ClockHorizon(divided.training_s, curve, used_s=used_s, agree=runtime.largest)
    return horizon, divided.final_tokens, plan, tuple(divided.notes)
