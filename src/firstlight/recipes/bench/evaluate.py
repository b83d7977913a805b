"""`firstlight bench eval`: tokens/s of the bits-per-byte evaluation on made-up documents."""

from __future__ import annotations

import numpy as np

from firstlight.eval.bpb import evaluate_bpb
from firstlight.recipes.assemble import assemble
from firstlight.recipes.bench.common import (
    RANDOM_IDS,
    Report,
    Timing,
    bench_plan,
    compile_choice,
    describe_model,
    steady_clock,
)
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime.context import Runtime
from firstlight.tokens.document import Document

NUM_TOKENS = 32_768


def random_documents(num_tokens: int, *, vocab_size: int, seed: int) -> list[Document]:
    """Documents of random ids, lengths log-normal around 400, ``num_tokens`` in all."""
    draw = np.random.default_rng(seed)
    documents, left = [], num_tokens
    while left > 0:
        length = min(left, max(1, int(draw.lognormal(6.0, 1.0))))
        documents.append(Document(draw.integers(1, vocab_size, length)))
        left -= length
    return documents


def bench_eval(options: BenchOptions, runtime: Runtime, *, num_tokens: int = NUM_TOKENS) -> Report:
    """Score the same documents once a round, eager and (where a long run compiles) with the compiled trunk, in turns."""
    plan = bench_plan(options)
    compiled, why = compile_choice(options, plan, runtime)
    parts = assemble(plan, runtime, compiled=compiled, seed=options.seed, checkpoint_activations=False)
    documents = random_documents(num_tokens, vocab_size=plan.model.vocab_size, seed=options.seed)
    token_bytes = np.full(plan.model.vocab_size, 4)
    variants = {"eager": False} | ({"compiled": True} if compiled else {})
    times: dict[str, list[float]] = {name: [] for name in variants}
    with steady_clock():
        for round_index in range(options.rounds + 1):
            for name, is_compiled in variants.items():
                result = evaluate_bpb(
                    parts.model, documents, token_bytes, bos_id=0, seq_len=plan.seq_len,
                    batch_rows=plan.device_batch_size, runtime=runtime,
                    hidden=parts.hidden if is_compiled else parts.model.hidden, fixed_shape=is_compiled,
                    compiled_loss=is_compiled,
                )  # fmt: skip
                if round_index:
                    times[name].append(result.elapsed_s)
    report = Report("eval", f"bits per byte: {describe_model(plan, options.preset)}, {runtime.dtype_name}")
    report.notes = [RANDOM_IDS, why]
    report.figures |= {"num_tokens": num_tokens, "num_documents": len(documents), "dtype": runtime.dtype_name}
    for name, values in times.items():
        timing = Timing(tuple(values))
        rate = num_tokens / timing.median_s
        report.figures[name] = {"tokens_per_s": rate, "elapsed_s": timing.median_s}
        report.line(name, f"{rate:,.0f} tokens/s", f"{len(documents)} documents, {timing.describe_ms()}")
    return report
