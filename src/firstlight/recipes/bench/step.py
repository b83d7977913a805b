"""`firstlight bench step`: tokens/s of the real training step, how near to the machine's limit it is, and where it goes.

The step is `train_step` with the real `MuonAdamW` and real `Hyper`, assembled as `train base` does; only the ids are made
up. Steps, its products alone (`gemm_fraction`) and the machine's peak take turns, so that all three see the same machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from firstlight.data.batch import Batch
from firstlight.errors import ConfigError
from firstlight.model import count
from firstlight.model.attention import choose_kernel
from firstlight.model.gemms import step_gemms
from firstlight.optim.gemms import optimizer_gemms
from firstlight.optim.schedule import Hyper
from firstlight.recipes.assemble import Parts, assemble
from firstlight.recipes.bench.common import (
    RANDOM_IDS,
    Report,
    Timing,
    bench_plan,
    compile_choice,
    describe_model,
    random_batches,
    steady_clock,
    timed,
)
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime import hardware
from firstlight.runtime.console import format_bytes
from firstlight.runtime.context import Runtime
from firstlight.runtime.gemm_bench import Gemm, GemmBench
from firstlight.train import loss as loss_layer
from firstlight.train.plan import Plan
from firstlight.train.step import StepStats, train_step

WARM_UP_STEPS = 3
PEAK_S = 0.1
NUM_BATCHES = 4


@dataclass
class StepBench:
    """Everything that a step needs, and the step. why: the reason why it is compiled, or not."""

    plan: Plan
    runtime: Runtime
    parts: Parts
    batches: list[Batch]
    hyper: Hyper
    why: str
    num_done: int = 0

    def step(self) -> StepStats:
        """`train_step` on the next of the made-up batches, in turn."""
        first = self.num_done * self.plan.num_micro_batches
        self.num_done += 1
        chosen = [self.batches[(first + i) % len(self.batches)] for i in range(self.plan.num_micro_batches)]
        return train_step(
            self.parts.model, self.parts.optimizer, chosen, self.runtime, self.hyper, hidden=self.parts.hidden,
            scaler=self.parts.scaler, compiled_loss=self.parts.compiled,
        )  # fmt: skip

    def pieces(self) -> dict[str, float]:
        """Seconds of forward, loss layer, backward and optimizer, with a wait between them; one step, trained on as well."""
        parts, runtime = self.parts, self.runtime
        batch = self.batches[self.num_done % len(self.batches)]
        held: list[torch.Tensor] = []
        times = {"forward": timed(lambda: held.append(parts.hidden(batch.inputs_BT)), runtime)}
        times["loss"] = timed(
            lambda: held.append(
                loss_layer.summed_cross_entropy(
                    held[0], parts.model.lm_head.weight, batch.targets_BT, softcap=self.plan.model.softcap,
                    compute_dtype=runtime.compute_dtype, compiled=parts.compiled,
                )
            ),
            runtime,
        )  # fmt: skip
        times["backward"] = timed(held[1].backward, runtime)
        times = {name: seconds * self.plan.num_micro_batches for name, seconds in times.items()}
        scale = 1 / batch.targets_BT.numel()
        times["optimizer"] = timed(lambda: parts.optimizer.step(self.hyper, grad_scale=scale), runtime)
        parts.optimizer.zero_grad()
        return times


def gemms_of(plan: Plan, runtime: Runtime, parts: Parts) -> list[Gemm]:
    """The products of one training step, the optimizer's included."""
    kernel, _ = choose_kernel(
        device_type=runtime.device.type, compute_dtype=runtime.compute_dtype, seq_len=plan.seq_len,
        is_compiled=parts.compiled,
    )  # fmt: skip
    # The head's gradient is made in blocks only on a CPU and below float32 (`loss._add_product_`).
    is_in_blocks = runtime.device.type == "cpu" and runtime.compute_dtype is not torch.float32
    found = step_gemms(
        plan.model,
        batch_rows=plan.device_batch_size,
        seq_len=plan.seq_len,
        dtype=runtime.compute_dtype,
        kernel=kernel,
        chunk_rows=loss_layer.default_chunk_rows(plan.model.vocab_size),
        block_ids=max(1, loss_layer.BLOCK_BYTES // (4 * plan.model.n_embd)) if is_in_blocks else None,
        num_micro_batches=plan.num_micro_batches,
    )
    optimizer = parts.optimizer
    return found + optimizer_gemms(
        optimizer.groups, dtype=optimizer.muon_dtype, coefficients=optimizer.muon_coefficients
    )


def make_step_bench(options: BenchOptions, runtime: Runtime) -> StepBench:
    """Model, optimizer and batches as a long training run with these options would have them, before their first step.

    Raises ConfigError for what cannot work.
    """
    plan = bench_plan(options)
    compiled, why = compile_choice(options, plan, runtime)
    parts = assemble(plan, runtime, compiled=compiled, seed=options.seed, checkpoint_activations=False)
    hyper = Hyper(momentum=plan.momentum_end, weight_decay=plan.weight_decay, grad_clip=plan.grad_clip)
    batches = random_batches(plan, runtime, num=NUM_BATCHES, seed=options.seed)
    return StepBench(plan, runtime, parts, batches, hyper, why)


def bench_step(options: BenchOptions, runtime: Runtime, *, num_steps: int = 20) -> Report:
    """Time ``num_steps`` training steps (after the first and WARM_UP_STEPS more) in ``options.rounds`` rounds.

    Raises ConfigError for what cannot work.
    """
    if num_steps < 1:
        raise ConfigError(f"--steps {num_steps} measures nothing", hint="the smallest is 1; 20 give a steady median")
    started_s = time.perf_counter()
    bench = make_step_bench(options, runtime)
    plan, parts = bench.plan, bench.parts
    build_s = time.perf_counter() - started_s
    first_s = bench.step().elapsed_s
    for _ in range(WARM_UP_STEPS):
        bench.step()
    rounds = min(options.rounds, num_steps)
    step_times: list[float] = []
    piece_times: list[dict[str, float]] = []
    with steady_clock():
        first_round = [bench.step().elapsed_s for _ in range(-(-num_steps // rounds))]
        # Before anything else is allocated: what training itself needs.
        rss_bytes, memory = hardware.peak_rss_bytes(), hardware.device_memory(runtime.device)
        gemms = GemmBench(gemms_of(plan, runtime, parts), runtime.device)
        best_peak = hardware.measure_peak(runtime.device, runtime.compute_dtype, seconds=PEAK_S)
        for i in range(rounds):
            step_times += first_round if i == 0 else [bench.step().elapsed_s for _ in range(len(first_round))]
            gemms.run_round()
            piece_times.append(bench.pieces())
            again = hardware.measure_peak(runtime.device, runtime.compute_dtype, seconds=PEAK_S)
            best_peak = max(best_peak, again, key=lambda peak: peak.flops_per_s)
    report = Report("step", f"training step: {describe_model(plan, options.preset)}")
    _fill(report, options, plan, runtime, parts, Timing(tuple(step_times)), piece_times, gemms, best_peak)
    report.figures |= {
        "peak_rss_bytes": rss_bytes,
        "peak_device_bytes": memory.peak_bytes if memory else None,
        "build_s": build_s,
        "first_step_s": first_s,
        "num_timed_steps": len(step_times),
    }
    if memory:
        report.line("peak memory of the device", format_bytes(memory.peak_bytes), "tensors of this process, at most")
    report.line("peak memory of the process", format_bytes(rss_bytes or 0), "resident, compilation included")
    report.line("first step", f"{first_s:,.1f} s", "compiles, where something is compiled; not in the figures above")
    report.notes = [RANDOM_IDS, bench.why, *parts.notes]
    return report


def _fill(
    report: Report,
    options: BenchOptions,
    plan: Plan,
    runtime: Runtime,
    parts: Parts,
    steps: Timing,
    piece_times: list[dict[str, float]],
    gemms: GemmBench,
    peak: hardware.Peak,
) -> None:
    """Figures and lines that follow from the times."""
    step_s, tokens = steps.median_s, plan.total_batch_size
    low, high = steps.quartiles_s
    flops = plan.flops_per_token * tokens
    causal = count.flops_per_token_causal(plan.model, plan.seq_len) * tokens
    kinds = ("matrices", "attention", "head", "optimizer")
    split = {f"{name}_ms": 1e3 * median(times[name] for times in piece_times) for name in piece_times[0]}
    by_kind = {f"gemm_{kind}_ms": 1e3 * gemms.step_s([kind]) for kind in kinds}
    report.figures |= {
        "tokens_per_s": tokens / step_s,
        "step_ms": 1e3 * step_s,
        "step_ms_low": 1e3 * low,
        "step_ms_high": 1e3 * high,
        "mfu": flops / step_s / peak.flops_per_s,
        "mfu_causal": causal / step_s / peak.flops_per_s,
        "gemm_fraction": gemms.step_s() / step_s,
        "gemm_peak_flops": peak.flops_per_s,
        "gemm_peak_source": peak.source,
        "achieved_flops_per_s": flops / step_s,
        **split,
        **by_kind,
        "depth": plan.depth,
        "preset": options.preset,
        "vocab_size": plan.model.vocab_size,
        "seq_len": plan.seq_len,
        "head_dim": plan.model.head_dim,
        "device_batch_size": plan.device_batch_size,
        "total_batch_size": tokens,
        "device": str(runtime.device),
        "dtype": runtime.dtype_name,
        "threads": runtime.num_threads,
        "compiled": parts.compiled,
        "gemms": gemms.table(),
    }
    f = report.figures
    report.line("tokens/s", f"{f['tokens_per_s']:,.0f}", f"{tokens:,} tokens a step, {runtime.dtype_name}")
    report.line("step", steps.describe_ms(), f"median and quartiles of {len(steps.times_s)} steps")
    report.line("mfu", f"{f['mfu']:.3f}", f"of {peak.flops_per_s / 1e9:,.0f} GFLOP/s ({peak.source})")
    report.line("mfu, causal", f"{f['mfu_causal']:.3f}", "the same without attention's masked half")
    report.line("gemm_fraction", f"{f['gemm_fraction']:.3f}", "time of the step's products alone / time of the step")
    report.line("achieved", f"{f['achieved_flops_per_s'] / 1e9:,.0f} GFLOP/s", "model FLOPs / time")
    for name in piece_times[0]:
        meaning = {"loss": "with both its gradients", "optimizer": "one call of step"}.get(name, "")
        report.line(f"  {name}", f"{split[f'{name}_ms']:,.2f} ms", meaning)
    for kind in kinds:
        report.line(f"  products: {kind}", f"{by_kind[f'gemm_{kind}_ms']:,.2f} ms", "alone")
