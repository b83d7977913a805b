"""The floor of the loss layer is its own three products, and the layer that is timed is the real one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from firstlight.recipes.bench.common import bench_plan
from firstlight.recipes.bench.loss import bench_loss, head_products, products
from firstlight.train.native.loss import why_not_native_loss


def test_the_floor_does_all_products_of_the_head(tiny_options, cpu) -> None:
    runtime = replace(cpu, compute_dtype=torch.bfloat16)
    plan = bench_plan(tiny_options)
    run = products(head_products(plan, runtime, vocab_size=96), runtime.device)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == 3 * 2 * (2 * 33) * 64 * 96


def test_the_ratio_is_of_the_medians(tiny_options, cpu) -> None:
    report = bench_loss(tiny_options, cpu)
    found = report.figures["v96"]
    assert found["eager_x_products"] == found["eager"] / found["products"]
    assert "compiled" not in found
    native = [] if why_not_native_loss(device_type="cpu", dtype=torch.float32) else ["V 96, native"]
    assert [what for what, _, _ in report.lines] == ["V 96, products", *native, "V 96, eager"]
