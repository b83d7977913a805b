"""How fast this machine trains and scores each depth, and how much text there is: what a plan by the clock needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from firstlight.data.split import split_documents
from firstlight.optim.schedule import Hyper
from firstlight.recipes.assemble import assemble
from firstlight.recipes.plans import device_memory_bytes
from firstlight.recipes.prepare import prepare_data
from firstlight.recipes.scale.grid import Rules, Speed
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.train.dial import REFERENCE_BATCH_TOKENS
from firstlight.train.loss import summed_cross_entropy, token_losses
from firstlight.train.plan import Horizon, make_plan

OTHER_FRAC = 0.05
"""Part of a step for what is not timed here: the loader, the checks, the log."""
MEASURE_S = 1.5


def measure_speed(depth: int, rules: Rules, runtime: Runtime, *, seed: int = 1337) -> Speed:
    """Time uncompiled training steps, the optimizer included, and scoring, for the model of a depth.

    Medians, not the best: other work on the machine will slow the cells as it slows these.
    """
    batch = rules.total_batch_size or REFERENCE_BATCH_TOKENS
    plan = make_plan(
        depth, horizon=Horizon("steps", 100), preset=rules.preset, vocab_size=rules.vocab_size, seq_len=rules.seq_len,
        head_dim=rules.head_dim, total_batch_size=max(rules.seq_len, batch // rules.seq_len * rules.seq_len),
        device_type=runtime.device.type, compute_bytes=runtime.compute_dtype.itemsize,
        memory_bytes=device_memory_bytes(runtime),
    )  # fmt: skip
    parts = assemble(plan, runtime, compiled=False, seed=seed, checkpoint_activations=False)
    shape = (plan.device_batch_size, plan.seq_len)
    ids_BT = torch.arange(shape[0] * shape[1], device=runtime.device).remainder(plan.model.vocab_size).view(shape)
    head, softcap = parts.model.lm_head.weight, plan.model.softcap

    def train() -> None:
        for _ in range(plan.num_micro_batches):
            summed_cross_entropy(
                parts.hidden(ids_BT), head, ids_BT, softcap=softcap, compute_dtype=runtime.compute_dtype
            ).backward()
        parts.optimizer.step(Hyper(lr_multiplier=0.0), grad_scale=1 / plan.total_batch_size)
        parts.optimizer.zero_grad()

    def score() -> None:
        with torch.no_grad():
            token_losses(parts.hidden(ids_BT), head, ids_BT, softcap=softcap, compute_dtype=runtime.compute_dtype)

    return Speed(
        train_s=(1 + OTHER_FRAC) * _median_s(train, runtime) / plan.total_batch_size,
        score_s=_median_s(score, runtime) / ids_BT.numel(),
    )


def _median_s(run: Callable[[], None], runtime: Runtime) -> float:
    """Median seconds of a call, over ``MEASURE_S`` seconds and three calls at least; the first warms up and is not counted."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < MEASURE_S:
        runtime.synchronize()
        begun = time.perf_counter()
        run()
        runtime.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@dataclass(frozen=True)
class Text:
    """The study's text, tokenised. num_score_tokens: tokens of the validation documents that a cell's final score takes."""

    tokenizer_hash: str
    vocab_size: int
    num_train_tokens: int
    num_val_documents: int
    num_score_tokens: int


def prepare_text(
    data: str, *, val: str | None, tokenizer_path: Path | None, rules: Rules, final_documents: int, cache_dir: Path,
    num_workers: int, seed: int, console: Console,
) -> Text:  # fmt: skip
    """Tokenise all of the text once, into the cache where every cell finds it; and count it.

    Raises ConfigError or DataError for what cannot be trained on.
    """
    prepared = prepare_data(
        data, val=val, tokenizer_path=tokenizer_path, vocab_size=rules.vocab_size, cache_dir=cache_dir,
        num_workers=num_workers, seed=seed, packing="bestfit", seq_len=rules.seq_len, console=console,
    )  # fmt: skip
    with prepared.store as store:
        with console.progress("tokenising", store.num_shards, unit="shards") as bar:
            for _ in store.shards():
                bar.advance()
        train, val_side = (
            np.concatenate([shard.lengths[split_documents(shard, prepared.val, side)] for shard in store.shards()])
            for side in ("train", "val")
        )
    scored = val_side[:final_documents] if final_documents else val_side
    return Text(
        tokenizer_hash=prepared.tokenizer.content_hash, vocab_size=prepared.tokenizer.vocab_size,
        num_train_tokens=int(train.sum()) + len(train), num_val_documents=len(val_side),
        num_score_tokens=int(scored.sum()) + len(scored),
    )  # fmt: skip
