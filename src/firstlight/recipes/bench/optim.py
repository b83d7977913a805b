"""`firstlight bench optim`: one call of the optimizer at the shapes of a depth, beside its matrix products alone."""

from __future__ import annotations

import torch

from firstlight.optim.gemms import optimizer_gemms
from firstlight.optim.schedule import Hyper
from firstlight.recipes.assemble import assemble
from firstlight.recipes.bench.common import (
    Report,
    Timing,
    bench_plan,
    compile_choice,
    describe_model,
    ratio,
    steady_clock,
    timed,
)
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime.context import Runtime
from firstlight.runtime.gemm_bench import GemmBench, total_flops


def bench_optim(options: BenchOptions, runtime: Runtime) -> Report:
    """Time `MuonAdamW.step` on random gradients, one call a round, in turns with the products of its orthogonalization."""
    plan = bench_plan(options)
    compiled, why = compile_choice(options, plan, runtime)
    parts = assemble(plan, runtime, compiled=compiled, seed=options.seed, checkpoint_activations=False)
    optimizer, parameters = parts.optimizer, list(parts.model.parameters())
    generator = torch.Generator().manual_seed(options.seed)
    grads = [torch.randn(p.shape, generator=generator).to(p.device) for p in parameters]
    hyper = Hyper(momentum=plan.momentum_end, weight_decay=plan.weight_decay, grad_clip=plan.grad_clip)
    muon_dtype = optimizer.muon_dtype
    gemms = optimizer_gemms(optimizer.groups, dtype=muon_dtype, coefficients=optimizer.muon_coefficients)
    bench = GemmBench(gemms, runtime.device)

    def step() -> float:
        # The optimizer uses gradients up; making them anew is not timed.
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        return timed(lambda: optimizer.step(hyper), runtime)

    first_s = step()
    step()
    times = []
    with steady_clock():
        for _ in range(options.rounds):
            times.append(step())
            bench.run_round()
    timing, products_s = Timing(tuple(times)), bench.step_s()
    num_params = sum(p.numel() for p in parameters)
    report = Report("optim", f"optimizer step: {describe_model(plan, options.preset)}")
    report.figures |= {
        "optimizer_ms": 1e3 * timing.median_s,
        "products_ms": 1e3 * products_s,
        "x_products": ratio(timing.median_s, products_s),
        "products_flops": total_flops(gemms),
        "num_params": num_params,
        "params_per_s": num_params / timing.median_s,
        "first_step_s": first_s,
        "muon_dtype": str(muon_dtype).removeprefix("torch."),
        "depth": plan.depth,
        "threads": runtime.num_threads,
    }
    report.line("optimizer step", timing.describe_ms(), f"{num_params:,} parameters")
    report.line("its products", f"{1e3 * products_s:,.2f} ms", f"alone, in {report.figures['muon_dtype']}")
    report.line("ratio", f"{report.figures['x_products']:.2f}x", "the rest is element by element: memory decides")
    report.notes = ["gradients are random numbers", why]
    return report
