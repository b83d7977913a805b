"""What each packing makes of a corpus, and how fast rows are made.

    python benchmarks/packing.py DATA_DIR --vocab-size 4096 [--val last] [--train-mb 16] [--json FILE]

Trains a tokenizer on the corpus, builds a token store (in a temporary folder unless --cache-dir is given), packs the
training side at T = 512 and T = 2048, and checks by reading every row that each id of each document is a target once.
Prints a table and one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from firstlight.data.build import build_store
from firstlight.data.loader import Loader
from firstlight.data.packing import PACKINGS, PackedRows, pack
from firstlight.data.sources.base import ReadCounts
from firstlight.data.sources.directory import open_directory
from firstlight.data.sources.reading import read_documents
from firstlight.data.split import resolve_for, split_documents, split_shards
from firstlight.data.stats import packing_stats
from firstlight.data.store import TokenStore
from firstlight.runtime.environment import cpu_name, num_usable_cpus
from firstlight.tokens.bpe import Tokenizer, train_tokenizer

SEQ_LENS = (512, 2048)
LOADER_S = 3.0
TRAINING_TOKENS_PER_S = 20_000
"""What training a depth-4 model reaches on two CPU cores, for the comparison in the last column."""


def times_as_target(packed: PackedRows) -> tuple[int, int]:
    """Fewest and most times that an id of a document is a target, counted place by place from the segments."""
    begins = np.concatenate([[0], np.cumsum(packed.lengths)])
    changes = np.zeros(int(begins[-1]) + 1, dtype=np.int64)
    first = np.zeros(len(packed.doc), dtype=bool)
    first[packed.row_offsets[:-1]] = True
    # The first place of a row is an input only: without BOS there, its first id is no target.
    start = packed.start + (first & ~packed.with_bos & (packed.start < packed.stop))
    np.add.at(changes, begins[packed.doc] + start, 1)
    np.add.at(changes, begins[packed.doc] + packed.stop, -1)
    times = np.cumsum(changes)[:-1]
    return int(times.min()), int(times.max())


def loader_rows_per_s(store: TokenStore, bos_id: int, *, val: str, packing: str, seq_len: int) -> float:
    """Rows that the loader gives in a second, packing of the shards that it passes included; one epoch or LOADER_S."""
    batch_rows = 8
    loader = Loader(
        store, tokenizer_bos_id=bos_id, val_spec=val, packing=packing, seq_len=seq_len, device_batch_size=batch_rows,
        seed=0, max_epochs=1,
    )  # fmt: skip
    start = time.perf_counter()
    num_batches = 0
    with loader:
        for num_batches in itertools.count():  # noqa: B007
            if next(loader, None) is None or time.perf_counter() - start > LOADER_S:
                break
    return num_batches * batch_rows / (time.perf_counter() - start)


def measure(store: TokenStore, bos_id: int, *, val: str, packing: str, seq_len: int) -> dict:
    """One row of the table."""
    spec = resolve_for(store, val)
    shards = [store.shard(i) for i in split_shards(spec, store.shard_names, "train")]
    lengths = [shard.lengths[split_documents(shard, spec, "train")] for shard in shards]
    start = time.perf_counter()
    packed = [pack(packing, each, row_len=seq_len + 1, seed=0) for each in lengths]
    packing_s = time.perf_counter() - start
    counts = [times_as_target(each) for each in packed if each.num_rows]
    stats = packing_stats(packed)
    rate = loader_rows_per_s(store, bos_id, val=val, packing=packing, seq_len=seq_len)
    return {
        "packing": packing,
        "seq_len": seq_len,
        "shards": len(shards),
        "documents": sum(map(len, lengths)),
        "tokens": int(sum(each.sum() for each in lengths)),
        **stats,
        "times_as_target_min": min(low for low, _ in counts),
        "times_as_target_max": max(high for _, high in counts),
        "packing_rows_per_s": stats["rows"] / packing_s,
        "loader_rows_per_s": rate,
        "loader_tokens_per_s": rate * seq_len,
        "times_training_needs": rate * seq_len / TRAINING_TOKENS_PER_S,
    }


def corpus_tokenizer(directory: Path, *, vocab_size: int, max_bytes: int) -> Tokenizer:
    source = open_directory(directory)
    texts = (text for shard in source.shards for _, text in read_documents(source.local_path(shard), ReadCounts()))
    return train_tokenizer(texts, vocab_size=vocab_size, max_bytes=max_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of .parquet, .jsonl or .txt files")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--val", default="last")
    parser.add_argument("--train-mb", type=float, default=16, help="text that the tokenizer is trained on, MB")
    parser.add_argument("--cache-dir", type=Path, help="keep the token store here")
    parser.add_argument("--json", type=Path, help="also write the JSON object to this file")
    args = parser.parse_args()
    tokenizer = corpus_tokenizer(args.data, vocab_size=args.vocab_size, max_bytes=int(args.train_mb * 1e6))
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        store = build_store(
            open_directory(args.data), tokenizer, cache_dir=args.cache_dir or Path(temporary),
            num_workers=num_usable_cpus(),
        )  # fmt: skip
        build_s = time.perf_counter() - start
        results = [
            measure(store, tokenizer.bos_id, val=args.val, packing=packing, seq_len=seq_len)
            for seq_len in SEQ_LENS
            for packing in PACKINGS
        ]
        text_bytes = sum(shard.manifest["text_bytes"] for shard in store.shards())
        report = {
            "cpu": cpu_name(),
            "cpus": num_usable_cpus(),
            "torch": torch.__version__,
            "data": args.data.name,
            "data_hash": store.data_hash,
            "vocab_size": args.vocab_size,
            "val": args.val,
            "build_s": build_s,
            "build_mb_per_s": text_bytes / 1e6 / build_s,
            "results": results,
        }
    columns = {
        "packing": "{packing}", "T": "{seq_len}", "rows": "{rows:,}", "tokens used": "{tokens_used_frac:.4%}",
        "filled": "{positions_filled_frac:.4%}", "padded": "{positions_padded:,}", "crops": "{crops:,}",
        "target min-max": "{times_as_target_min}-{times_as_target_max}", "BOS first": "{rows_begin_at_bos_frac:.1%}",
        "packing rows/s": "{packing_rows_per_s:,.0f}", "loader rows/s": "{loader_rows_per_s:,.0f}",
        f"x {TRAINING_TOKENS_PER_S:,} tok/s": "{times_training_needs:,.0f}",
    }  # fmt: skip
    lines = [list(columns), *([text.format(**result) for text in columns.values()] for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        sys.stdout.write("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + "\n")
    text = json.dumps(report)
    sys.stdout.write(text + "\n")
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
