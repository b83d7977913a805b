"""`firstlight bench loss`: the loss layer, forward and backward, against its three bare matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch

from firstlight.model.gemms import head_gemms
from firstlight.recipes.bench.common import (
    RANDOM_IDS,
    Report,
    bench_plan,
    compile_choice,
    ratio,
    take_turns,
)
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime.context import Runtime
from firstlight.runtime.gemm_bench import Gemm
from firstlight.train import loss as loss_layer
from firstlight.train.native.loss import why_not_native_loss
from firstlight.train.plan import Plan


def products(gemms: list[Gemm], device: torch.device) -> Callable[[], None]:
    """A function that does the head's products once, as often as a step does, from operands of the right layout."""
    from firstlight.runtime.gemm_bench import operands_of

    work = [(operands_of(gemm, device), gemm.count) for gemm in gemms]

    def run() -> None:
        for (a, b, out), count in work:
            for _ in range(count):
                torch.mm(a, b, out=out)

    return run


def head_products(plan: Plan, runtime: Runtime, *, vocab_size: int) -> list[Gemm]:
    """The three products of the loss layer for one micro-batch of the plan, at a vocabulary of ``vocab_size``."""
    from dataclasses import replace

    config = replace(plan.model, vocab_size=vocab_size)
    is_in_blocks = runtime.device.type == "cpu" and runtime.compute_dtype is not torch.float32
    return head_gemms(
        config,
        num_tokens=plan.device_batch_size * plan.seq_len,
        dtype=runtime.compute_dtype,
        chunk_rows=loss_layer.default_chunk_rows(vocab_size),
        block_ids=max(1, loss_layer.BLOCK_BYTES // (4 * config.n_embd)) if is_in_blocks else None,
    )


def bench_loss(options: BenchOptions, runtime: Runtime) -> Report:
    """Time the loss layer in turns with its products alone, at the vocabulary and at 32,768 ids.

    Its kernel: native where there is such code, and torch's operations, eager and compiled.
    """
    plan = bench_plan(options)
    compiled, why = compile_choice(options, plan, runtime)
    tokens, width = plan.device_batch_size * plan.seq_len, plan.model.n_embd
    report = Report("loss", f"loss layer: {tokens:,} tokens, width {width}, {runtime.dtype_name}")
    report.notes = [RANDOM_IDS, why]
    not_native = why_not_native_loss(device_type=runtime.device.type, dtype=runtime.compute_dtype)
    if not_native is not None:
        report.notes.append(f"no native kernel: {not_native}")
    report.figures |= {"tokens": tokens, "width": width, "dtype": runtime.dtype_name, "threads": runtime.num_threads}
    vocabularies = [plan.model.vocab_size] if options.vocab_size else sorted({plan.model.vocab_size, 32_768})
    for vocab_size in vocabularies:
        generator = torch.Generator().manual_seed(options.seed)
        x_BTD = torch.randn(1, tokens, width, generator=generator).to(runtime.device, runtime.compute_dtype)
        weight_VD = (torch.randn(vocab_size, width, generator=generator) * 0.05).to(runtime.device)
        targets_BT = torch.randint(vocab_size, (1, tokens), generator=generator).to(runtime.device)
        x_BTD.requires_grad_()
        weight_VD.requires_grad_()

        def layer(
            is_compiled: bool, is_native: bool = False, x=x_BTD, weight=weight_VD, targets=targets_BT
        ) -> Callable[[], None]:
            def run() -> None:
                x.grad = weight.grad = None
                loss_layer.summed_cross_entropy(
                    x, weight, targets, softcap=plan.model.softcap, compute_dtype=runtime.compute_dtype,
                    compiled=is_compiled, native=is_native,
                ).backward()  # fmt: skip

            return run

        runs = {"products": products(head_products(plan, runtime, vocab_size=vocab_size), runtime.device)}
        if not_native is None:
            runs["native"] = layer(False, is_native=True)
        runs["eager"] = layer(False)
        if compiled:
            runs["compiled"] = layer(True)
        times = take_turns(runs, rounds=options.rounds, runtime=runtime)
        floor_s = times["products"].median_s
        report.figures[f"v{vocab_size}"] = {name: timing.median_s for name, timing in times.items()}
        for name, timing in times.items():
            meaning = "its three matrix products alone"
            if name != "products":
                meaning = f"{ratio(timing.median_s, floor_s):.2f}x the products"
                report.figures[f"v{vocab_size}"][f"{name}_x_products"] = ratio(timing.median_s, floor_s)
            report.line(f"V {vocab_size:,}, {name}", timing.describe_ms(), meaning)
    return report
