"""The timed step is the training step: same updates, its figures follow from its times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from firstlight.errors import ConfigError
from firstlight.model import count
from firstlight.recipes.bench import step
from firstlight.recipes.bench.common import bench_plan
from firstlight.runtime.gemm_bench import total_flops


def test_the_figures_follow_from_the_times(tiny_options, cpu) -> None:
    report = step.bench_step(replace(tiny_options, preset="modern"), cpu, num_steps=4)
    f = report.figures
    plan = bench_plan(tiny_options)
    tokens, step_s = 2 * 33, f["step_ms"] / 1e3
    assert f["num_timed_steps"] == 4
    assert f["tokens_per_s"] == pytest.approx(tokens / step_s)
    assert f["mfu"] == pytest.approx(count.flops_per_token(plan.model, 33) * tokens / step_s / f["gemm_peak_flops"])
    assert f["mfu_causal"] < f["mfu"]
    alone = sum(f[f"gemm_{kind}_ms"] for kind in ("matrices", "attention", "head", "optimizer"))
    assert f["gemm_fraction"] == pytest.approx(alone / f["step_ms"])
    assert sum(row["ms"] for row in f["gemms"]) == pytest.approx(alone)
    assert f["step_ms_low"] <= f["step_ms"] <= f["step_ms_high"]
    assert f["peak_rss_bytes"] > 50e6
    assert {"forward_ms", "loss_ms", "backward_ms", "optimizer_ms", "first_step_s"} <= set(f)
    assert "ids are random" in report.notes[0]
    assert [what for what, _, _ in report.lines][:5] == ["tokens/s", "step", "mfu", "mfu, causal", "gemm_fraction"]


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
def test_the_products_of_the_list_are_those_of_the_step(tiny_options, cpu, preset) -> None:
    """In bf16, since torch does not count `addmm_`; gates are the only ones beside the list."""
    runtime = replace(cpu, compute_dtype=torch.bfloat16)
    bench = step.make_step_bench(replace(tiny_options, preset=preset, total_batch_size=132, dtype="bf16"), runtime)
    with FlopCounterMode(display=False) as counter:
        bench.step()
    gates = sum(p.numel() for name, p in bench.parts.model.named_parameters() if name.endswith("value_gate.weight"))
    listed = total_flops(step.gemms_of(bench.plan, runtime, bench.parts))
    assert counter.get_total_flops() == listed + 6 * 132 * gates
    assert (gates > 0) == (preset == "modern")


def test_a_step_in_pieces_trains_as_a_whole_step_does(tiny_options, cpu) -> None:
    whole, pieces = step.make_step_bench(tiny_options, cpu), step.make_step_bench(tiny_options, cpu)
    whole.step()
    times = pieces.pieces()
    assert list(times) == ["forward", "loss", "backward", "optimizer"]
    for ours, theirs in zip(whole.parts.model.parameters(), pieces.parts.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert all(p.grad is None for p in pieces.parts.model.parameters())


def test_micro_batches_are_taken_in_turn(tiny_options, cpu) -> None:
    bench = step.make_step_bench(replace(tiny_options, total_batch_size=132), cpu)
    assert bench.step().num_targets == 132
    assert bench.num_done == 1


def test_no_step_is_refused(tiny_options, cpu) -> None:
    with pytest.raises(ConfigError, match="--steps 0"):
        step.bench_step(tiny_options, cpu, num_steps=0)
