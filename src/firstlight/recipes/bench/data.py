"""`firstlight bench data`: rows/s of the loader, packing included, from a token store of made-up text; and what it loses."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from firstlight.data.build import build_store
from firstlight.data.loader import Loader
from firstlight.data.packing import PACKINGS, pack
from firstlight.data.sources.directory import open_directory
from firstlight.data.split import resolve_for, split_documents, split_shards
from firstlight.data.stats import packing_stats
from firstlight.data.store import TokenStore
from firstlight.recipes.bench.common import Report, Timing, bench_plan
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer

NUM_SHARDS = 2
SHARD_BYTES = 3_000_000
ROUND_S = 0.5
VAL = "hash:0.01"
MADE_UP = "the text is made up (random words, lengths log-normal around 1,500 bytes), a token a byte"


def write_texts(folder: Path, *, shard_bytes: int, num_shards: int, seed: int) -> None:
    """Shards of made-up documents, .jsonl."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 10))) for _ in range(2000)]
    for shard in range(num_shards):
        lines, size = [], 0
        while size < shard_bytes:
            text = " ".join(draw.choices(words, k=max(1, int(draw.lognormvariate(5.5, 1.0)))))
            lines.append(json.dumps({"text": text}))
            size += len(text)
        (folder / f"part_{shard}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def loader_rows_per_s(
    store: TokenStore, *, bos_id: int, packing: str, seq_len: int, batch_rows: int, seconds: float, rounds: int
) -> tuple[Timing, float]:
    """Seconds a row, a figure for each round; and rows/s from the start until the first ``seconds`` are over."""
    with Loader(
        store,
        tokenizer_bos_id=bos_id,
        val_spec=VAL,
        packing=packing,
        seq_len=seq_len,
        device_batch_size=batch_rows,
        seed=0,
    ) as loader:
        rates, times = [], []
        for _ in range(rounds):
            start, num_batches = time.perf_counter(), 0
            while time.perf_counter() - start < seconds or num_batches == 0:
                next(loader)
                num_batches += 1
            elapsed_s = time.perf_counter() - start
            times.append(elapsed_s / (num_batches * batch_rows))
            rates.append(num_batches * batch_rows / elapsed_s)
    return Timing(tuple(times)), rates[0]


def tokens_lost_frac(store: TokenStore, *, packing: str, seq_len: int) -> float:
    """Share of the training tokens that are in no row, over one epoch."""
    spec = resolve_for(store, VAL)
    shards = [store.shard(i) for i in split_shards(spec, store.shard_names, "train")]
    lengths = [np.asarray(shard.lengths[split_documents(shard, spec, "train")]) for shard in shards]
    stats = packing_stats([pack(packing, each, row_len=seq_len + 1, seed=0) for each in lengths])
    return 1.0 - stats["tokens_used_frac"]


def bench_data(
    options: BenchOptions, runtime: Runtime, *, shard_bytes: int = SHARD_BYTES, round_s: float = ROUND_S
) -> Report:
    """Build a store in a temporary folder (timed apart) and read rows from it, for each packing."""
    plan = bench_plan(options)
    report = Report("data", f"loader: rows of {plan.seq_len} tokens, {plan.device_batch_size} a batch")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "texts").mkdir()
        write_texts(folder / "texts", shard_bytes=shard_bytes, num_shards=NUM_SHARDS, seed=options.seed)
        tokenizer = Tokenizer([bytes([b]) for b in range(256)])
        start = time.perf_counter()
        with build_store(
            open_directory(folder / "texts"), tokenizer, cache_dir=folder / "cache", num_workers=0
        ) as store:
            build_s = time.perf_counter() - start
            text_bytes = sum(shard.manifest["text_bytes"] for shard in store.shards())
            for packing in PACKINGS:
                timing, first_rate = loader_rows_per_s(
                    store, bos_id=tokenizer.bos_id, packing=packing, seq_len=plan.seq_len,
                    batch_rows=plan.device_batch_size, seconds=round_s, rounds=options.rounds,
                )  # fmt: skip
                lost = tokens_lost_frac(store, packing=packing, seq_len=plan.seq_len)
                rate = 1 / timing.median_s
                report.figures[packing] = {
                    "rows_per_s": rate,
                    "tokens_per_s": rate * plan.seq_len,
                    "rows_per_s_at_start": first_rate,
                    "tokens_lost_frac": lost,
                }
                report.line(
                    f"{packing}",
                    f"{rate:,.0f} rows/s",
                    f"{rate * plan.seq_len:,.0f} tokens/s; {lost:.4%} of tokens lost",
                )
    report.figures |= {
        "seq_len": plan.seq_len,
        "batch_rows": plan.device_batch_size,
        "text_bytes": text_bytes,
        "build_s": build_s,
        "build_mb_per_s": text_bytes / 1e6 / build_s,
    }
    report.line("building the store", f"{build_s:,.1f} s", f"{text_bytes / 1e6:,.1f} MB by one thread, bytes as tokens")
    report.notes = [MADE_UP]
    return report
