"""What each packing makes of a corpus, and how fast rows are made.

    python benchmarks/packing.py DATA_DIR --vocab-size 4096 [--val last] [--train-mb 16] [--json FILE]

Trains a tokenizer on the corpus, builds a token store (in a temporary folder unless --cache-dir is given), packs the
training side at T = 512 and T = 2048, and checks by reading every row that each id of each document is a target once.
Prints a table and writes benchmarks/results/packing.json (or --json FILE) and BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import results

from firstlight.data.build import build_store
from firstlight.data.loader import Loader
from firstlight.data.packing import PACKINGS, PackedRows, pack
from firstlight.data.sources.base import ReadCounts
from firstlight.data.sources.directory import open_directory
from firstlight.data.sources.reading import read_documents
from firstlight.data.split import resolve_for, split_documents, split_shards
from firstlight.data.stats import packing_stats
from firstlight.data.store import TokenStore
from firstlight.runtime.environment import num_usable_cpus
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
    parser.add_argument("--json", type=Path, help="write the result to this file instead of results/")
    args = parser.parse_args()
    tokenizer = corpus_tokenizer(args.data, vocab_size=args.vocab_size, max_bytes=int(args.train_mb * 1e6))
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        store = build_store(
            open_directory(args.data), tokenizer, cache_dir=args.cache_dir or Path(temporary),
            num_workers=num_usable_cpus(),
        )  # fmt: skip
        build_s = time.perf_counter() - start
        found = [
            measure(store, tokenizer.bos_id, val=args.val, packing=packing, seq_len=seq_len)
            for seq_len in SEQ_LENS
            for packing in PACKINGS
        ]
        text_bytes = sum(shard.manifest["text_bytes"] for shard in store.shards())
        data_hash = store.data_hash
    columns = {
        "packing": "{packing}", "T": "{seq_len:,}", "rows": "{rows:,}", "tokens used": "{tokens_used_frac:.4%}",
        "places filled": "{positions_filled_frac:.4%}", "places padded": "{positions_padded:,}",
        "times each id is a target": "{times_as_target_min} to {times_as_target_max}", "crops": "{crops:,}",
        "rows that begin at BOS": "{rows_begin_at_bos_frac:.1%}", "packing rows/s": "{packing_rows_per_s:,.0f}",
        "loader rows/s": "{loader_rows_per_s:,.0f}",
        f"loader against {TRAINING_TOKENS_PER_S:,} tokens/s of training": "{times_training_needs:,.0f}x",
    }  # fmt: skip
    rows = [[text.format(**each) for text in columns.values()] for each in found]
    results.show(tuple(columns), rows)
    results.write_result(
        "packing",
        title="Packing and loader: rows, tokens lost, rows/s",
        command=f"python benchmarks/packing.py DIR --vocab-size {args.vocab_size}",
        columns=tuple(columns),
        rows=rows,
        notes=[
            f"Corpus: `{args.data.name}`, {found[0]['documents']:,} training documents, {found[0]['tokens']:,} tokens.",
            "The padded places are the ends of the last rows of the shards (they carry no loss).",
            f"Building the token store: {build_s:.1f} s for {text_bytes / 1e6:,.0f} MB of text with {num_usable_cpus()} "
            f"workers ({text_bytes / 1e6 / build_s:.1f} MB/s).",
        ],
        figures={
            "data_hash": data_hash,
            "vocab_size": args.vocab_size,
            "build_s": build_s,
            "build_mb_per_s": text_bytes / 1e6 / build_s,
            **{f"{each['packing']}_{each['seq_len']}": each for each in found},
        },
        path=args.json,
    )


if __name__ == "__main__":
    main()
