"""When a launch ends: counted steps are taken as they are, minutes are divided."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from firstlight.recipes.assemble import Rates
from firstlight.recipes.launch_horizon import horizon_of_launch
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.context import Runtime
from firstlight.train.horizon import ClockHorizon, StepHorizon
from firstlight.train.plan import Horizon, make_plan

CPU = Runtime(device=torch.device("cpu"))


def horizon(horizon, rates=None, **settings):
    plan = make_plan(1, horizon=horizon, vocab_size=300, seq_len=32, total_batch_size=128)
    return horizon_of_launch(
        plan, BaseSettings(**settings), rates, used_s=0.0, is_resumed=False, num_val_tokens=lambda: 6400,
        spent_s=lambda: 20.0, runtime=CPU,
    )  # fmt: skip


def test_counted_steps_need_no_measurement_and_no_limit_of_the_final_score():
    found, final_tokens, plan, notes = horizon(Horizon("steps", 30))
    assert isinstance(found, StepHorizon)
    assert (found.num_steps, final_tokens, plan.num_steps, notes) == (30, None, 30, ())


def test_minutes_leave_out_what_preparing_took_and_set_the_intervals():
    found, _, plan, _ = horizon(Horizon("minutes", 2.0), Rates(train_s=0.01, score_s=0.001))
    assert isinstance(found, ClockHorizon)
    # 120 s, of which 20 are gone; closing and the final score take a little more.
    assert 80 < found.total_s < 100
    # About 0.0115 s a step: between seven and nine thousand of them.
    assert 7000 < plan.estimated_steps < 9000
    assert plan.eval_every == pytest.approx(plan.estimated_steps / 10, abs=1)


def test_intervals_that_were_given_stay():
    _, _, plan, _ = horizon(Horizon("minutes", 2.0), Rates(0.01, 0.001), save_every=7)
    assert plan.save_every != 7, "the plan was made without it"
    assert plan.eval_every > 20


def of_rank(runtime):
    plan = make_plan(1, horizon=Horizon("minutes", 2.0), vocab_size=300, seq_len=32, total_batch_size=128)
    rates = Rates(0.02 + 0.001 * runtime.rank, 0.002 - 0.001 * runtime.rank)
    found, final_tokens, plan, _ = horizon_of_launch(
        plan, BaseSettings(), rates, used_s=0.0, is_resumed=False, num_val_tokens=lambda: 10**7,
        spent_s=lambda: 20.0 + runtime.rank, runtime=runtime,
    )  # fmt: skip
    return found.total_s, final_tokens, plan.eval_every, plan.save_every, plan.estimated_steps


def test_ranks_that_measured_other_times_end_save_and_score_at_the_same_steps():
    first, second = run_ranks(of_rank, 2)
    assert first == second
    assert first[1] is not None, "the final score is cut to a number of tokens, the same for both"
