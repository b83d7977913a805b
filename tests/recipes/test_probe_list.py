"""Claims of recipes/probe_list.py: settings become probes with their budgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from firstlight.recipes.probe_list import make_probes
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.console import Console


def probes_of(**settings: Any) -> dict[str, Any]:
    plan: Any = SimpleNamespace(eval_every=5, sample_every=9)
    nothing: Any = None
    found = make_probes(
        BaseSettings(**settings), plan, nothing, nothing, console=Console(is_main=False), runtime=nothing,
        core=nothing, in_lockstep=False, beat=lambda phase: None, should_stop=lambda: False,
    )  # fmt: skip
    return {probe.name: probe for probe in found}


@pytest.mark.parametrize(("given", "after_an_hour_s"), [(None, 360), (7.5, 7.5)])
def test_each_probe_has_its_own_interval_and_budget(given: float | None, after_an_hour_s: float) -> None:
    probes = probes_of(eval_budget_s=given, sample_budget_s=40)
    assert list(probes) == ["eval", "sample", "core"]
    assert not probes["core"].due(500, is_last=True)
    assert probes["core"].budget.seconds(3600) == 600
    assert probes["eval"].budget.seconds(3600) == after_an_hour_s
    assert probes["sample"].budget.seconds(3600) == 40
    assert [step for step in range(20) if probes["eval"].due(step, is_last=False)] == [0, 5, 10, 15]
    assert [step for step in range(20) if probes["sample"].due(step, is_last=False)] == [9, 18]
