"""Settings to a plan: one horizon, given values win."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.recipes.plans import device_memory_bytes, horizon_of, plan_from_settings
from firstlight.recipes.settings import BaseSettings, SftSettings
from firstlight.runtime.context import Runtime

CPU = Runtime(device=torch.device("cpu"))


def test_each_horizon_setting_becomes_its_unit():
    assert horizon_of(BaseSettings()) is None
    for name, kind in {"num_iterations": "steps", "tokens": "tokens", "flops": "flops", "minutes": "minutes"}.items():
        horizon = horizon_of(BaseSettings(**{name: 7}))
        assert (horizon.kind, horizon.value) == (kind, 7)


def test_two_horizons_are_refused_and_both_named():
    with pytest.raises(ConfigError, match=r"--tokens 1e\+06.*--minutes 3|--minutes 3.*--tokens 1e\+06"):
        horizon_of(BaseSettings(tokens=1e6, minutes=3))


def test_given_values_reach_the_plan():
    settings = BaseSettings(
        depth=2, num_iterations=9, vocab_size=512, max_seq_len=64, total_batch_size=256, device_batch_size=2, matrix_lr=0.5,
        eval_every=3, grad_clip=0.0,
    )  # fmt: skip
    plan = plan_from_settings(settings, runtime=CPU)
    assert (plan.num_steps, plan.model.vocab_size, plan.seq_len, plan.num_micro_batches) == (9, 512, 64, 2)
    assert (plan.matrix_lr, plan.eval_every, plan.grad_clip) == (0.5, 3, 0.0)


def test_fp8_is_refused_where_the_device_has_none():
    with pytest.raises(ConfigError, match=r"--fp8: a device of type cpu has no 8-bit"):
        plan_from_settings(BaseSettings(depth=2, num_iterations=9, fp8=True), runtime=CPU)


def test_memory_of_a_cpu_is_shared_by_its_processes():
    whole = device_memory_bytes(CPU)
    assert whole is None or device_memory_bytes(Runtime(device=torch.device("cpu"), world_size=2)) == whole // 2


@pytest.mark.parametrize("name", ["epochs", "tokens", "flops", "minutes", "tokens_per_param"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_horizon_that_is_no_finite_number_is_refused(name, value):
    if name == "epochs":
        settings: BaseSettings | SftSettings = SftSettings(epochs=value)
    else:
        settings = BaseSettings(**{name: value})
    with pytest.raises(ConfigError, match="is no length of a run"):
        horizon_of(settings)
