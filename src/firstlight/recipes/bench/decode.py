"""`firstlight bench decode`: tokens/s of generation with the key/value cache, at batch 1 and 32."""

from __future__ import annotations

import time

from firstlight.infer.engine import generate
from firstlight.infer.native.step import why_not_native
from firstlight.model import count
from firstlight.model.gpt import GPT
from firstlight.model.init import build_gpt
from firstlight.recipes.bench.common import Report, Timing, bench_plan, describe_model, steady_clock
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime.context import Runtime

BATCHES = (1, 32)
PROMPT_TOKENS = 64
NEW_TOKENS = 128


def decode_s(model: GPT, runtime: Runtime, *, batch: int, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prompt with the first token, and of one later step for all samples together."""
    prompt = [i * 7919 % model.config.vocab_size for i in range(prompt_tokens)]
    runtime.synchronize()
    start = time.perf_counter()
    generation = generate(model, prompt, max_new_tokens=new_tokens, temperature=0.0, num_samples=batch)
    next(generation)
    runtime.synchronize()
    first_s = time.perf_counter() - start
    start = time.perf_counter()
    steps = sum(1 for _ in generation)
    runtime.synchronize()
    return first_s, (time.perf_counter() - start) / max(1, steps)


def bench_decode(options: BenchOptions, runtime: Runtime, *, new_tokens: int = NEW_TOKENS) -> Report:
    """Decode greedily from a random model: a short prompt, then ``new_tokens`` (as many as fit the context)."""
    plan = bench_plan(options)
    context = plan.model.max_seq_len
    prompt_tokens = min(PROMPT_TOKENS, max(1, context // 4))
    new_tokens = min(new_tokens, context - prompt_tokens)
    model = build_gpt(
        plan.model, device=runtime.device, compute_dtype=runtime.compute_dtype, seed=options.seed
    ).eval()  # fmt: skip
    report = Report("decode", f"decoding: {describe_model(plan, options.preset)}, {runtime.dtype_name}")
    report.figures |= {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "dtype": runtime.dtype_name}
    times: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    with steady_clock():
        for round_index in range(options.rounds + 1):
            for batch in BATCHES:
                found = decode_s(
                    model, runtime, batch=batch, prompt_tokens=prompt_tokens,
                    new_tokens=new_tokens if round_index else min(4, new_tokens),
                )  # fmt: skip
                if round_index:
                    times[batch].append(found)
    for batch in BATCHES:
        steps, first = Timing(tuple(s for _, s in times[batch])), Timing(tuple(f for f, _ in times[batch]))
        flops = count.decode_flops_per_token(plan.model, prompt_tokens + new_tokens // 2) * batch
        report.figures[f"batch_{batch}"] = {
            "tokens_per_s": batch / steps.median_s,
            "step_ms": 1e3 * steps.median_s,
            "first_token_ms": 1e3 * first.median_s,
            "flops_per_s": flops / steps.median_s,
        }
        report.line(f"batch {batch}", f"{batch / steps.median_s:,.0f} tokens/s", f"{steps.describe_ms()} a step")
        report.line(
            f"batch {batch}, first token", f"{1e3 * first.median_s:,.1f} ms", f"a prompt of {prompt_tokens} tokens"
        )
    reason = why_not_native(device_type=runtime.device.type, dtype=runtime.compute_dtype)
    report.figures["native_step"] = reason is None
    report.notes = [
        "the weights are random; greedy",
        "native step" if reason is None else f"torch's operations: {reason}",
    ]
    return report
