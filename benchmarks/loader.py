"""Rows that the loader gives in a second and tokens that it loses, beside a loader that tokenises while it reads.

    python benchmarks/loader.py DATA_DIR                        ours alone
    python benchmarks/loader.py DATA_DIR --peer NANOCHAT_DIR    and nanochat's, from a checkout of it, in turns

DATA_DIR holds .parquet files with a column ``text``; the last one is left out, as validation. Both loaders get the same
files, one tokenizer's ids and tiktoken as the encoder, and pack documents best-fit into rows that begin with BOS.

Ours reads a token store, which is built once (its time and MB/s of text are in the notes): rows/s are given without it and,
in brackets, for a run that builds the store and then reads one epoch. The peer encodes each document when its turn comes.
Each rate is the median over the rounds; a turn takes --turn-s seconds and goes on where the one before it ended.

Tokens lost, ours: ids of the epoch's documents minus those that were targets in one epoch (a first id of a row is a target
in no row of anybody; ours puts BOS there). The peer's: ids that it encoded, minus those in its rows and in its buffer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import results
import torch
from packing import corpus_tokenizer

from firstlight.data.build import build_store
from firstlight.data.loader import Loader
from firstlight.data.sources.directory import open_directory
from firstlight.data.split import resolve_for, split_documents, split_shards
from firstlight.data.store import TokenStore
from firstlight.runtime.environment import num_usable_cpus
from firstlight.tokens.bpe import Tokenizer, make_encoding

CASES = ((512, 8), (512, 32), (2048, 8), (2048, 32))
COLUMNS = ("T", "B", "rows/s", "rows/s with building the store", "tokens lost", "peer rows/s", "peer tokens lost", "ratio",
           "ratio with building the store")  # fmt: skip


class CountingTokenizer:
    """What the peer's loader asks of a tokenizer, over our ids; counts what it has encoded, BOS included."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ranks = {tokenizer.id_bytes(i): i for i in range(tokenizer.vocab_size - len(tokenizer.special_ids))}
        self._encoding = make_encoding(ranks, tokenizer.pattern, tokenizer.special_ids)
        self._bos_id = tokenizer.bos_id
        self.num_ids = 0

    def get_bos_token_id(self) -> int:
        return self._bos_id

    def encode(self, texts: list[str], prepend: int, num_threads: int) -> list[list[int]]:
        rows = self._encoding.encode_ordinary_batch(texts, num_threads=num_threads)
        for ids in rows:
            ids.insert(0, prepend)
        self.num_ids += sum(map(len, rows))
        return rows


class Peer:
    """One of the peer's loaders. Its first batch is made here: it fills a buffer with documents."""

    def __init__(
        self, make: Callable[..., Iterator[Any]], tokenizer: Tokenizer, *, seq_len: int, batch_rows: int
    ) -> None:
        self._tokenizer = CountingTokenizer(tokenizer)
        self._batches = make(
            self._tokenizer, batch_rows, seq_len, "train", tokenizer_threads=num_usable_cpus(), device="cpu"
        )
        self._row_len = seq_len + 1
        self.batch_rows = batch_rows
        self.num_rows = 0
        self.next()

    def next(self) -> None:
        next(self._batches)
        self.num_rows += self.batch_rows

    def lost_frac(self) -> float:
        buffered = sum(map(len, self._batches.gi_frame.f_locals["doc_buffer"]))  # type: ignore[attr-defined]
        consumed = self._tokenizer.num_ids - buffered
        return 1 - self.num_rows * self._row_len / consumed


def import_peer(directory: Path, data: Path, home: Path) -> Callable[..., Iterator[Any]]:
    """The peer's loader with a home of its own, in which its data folder is ``data``."""
    os.environ["NANOCHAT_BASE_DIR"] = str(home)
    sys.path.insert(0, str(directory))
    import nanochat.dataset as dataset  # pyrefly: ignore[missing-import]
    from nanochat.dataloader import (  # pyrefly: ignore[missing-import]
        tokenizing_distributed_data_loader_with_state_bos_bestfit as make,
    )

    link = Path(dataset.DATA_DIR)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(data.resolve(), target_is_directory=True)
    return make


def our_loader(
    store: TokenStore, tokenizer: Tokenizer, *, seq_len: int, batch_rows: int, max_epochs: int | None
) -> Loader:
    return Loader(
        store, tokenizer_bos_id=tokenizer.bos_id, val_spec="last", packing="bestfit", seq_len=seq_len,
        device_batch_size=batch_rows, seed=0, max_epochs=max_epochs,
    )  # fmt: skip


def one_epoch(store: TokenStore, tokenizer: Tokenizer, *, seq_len: int) -> tuple[int, float, float]:
    """Rows of an epoch, seconds that it takes, and the part of the documents' ids that are no target in it."""
    spec = resolve_for(store, "last")
    shards = [store.shard(i) for i in split_shards(spec, store.shard_names, "train")]
    num_ids = sum(int(shard.lengths[split_documents(shard, spec, "train")].sum()) for shard in shards)
    num_targets = num_rows = 0
    elapsed_s = 0.0
    start = time.perf_counter()
    with our_loader(store, tokenizer, seq_len=seq_len, batch_rows=32, max_epochs=1) as loader:
        for batch in loader:
            elapsed_s += time.perf_counter() - start
            num_targets += int(((batch.targets_BT >= 0) & (batch.targets_BT != tokenizer.bos_id)).sum())
            num_rows += int((batch.targets_BT >= 0).any(dim=1).sum())
            start = time.perf_counter()
    return num_rows, elapsed_s, 1 - num_targets / num_ids


def rate(take: Callable[[], object], batch_rows: int, *, seconds: float) -> float:
    """Rows in a second, over at least ``seconds``."""
    start = time.perf_counter()
    num_batches = 0
    while (elapsed_s := time.perf_counter() - start) < seconds:
        take()
        num_batches += 1
    return num_batches * batch_rows / elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of .parquet files")
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat to run beside")
    parser.add_argument("--json", type=Path, help="write the result here instead of benchmarks/results/loader.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn-s", type=float, default=1.0, help="seconds of one turn")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--train-mb", type=float, default=4, help="text that the tokenizer is trained on, MB")
    args = parser.parse_args()

    torch.set_num_threads(1)
    tokenizer = corpus_tokenizer(args.data, vocab_size=args.vocab_size, max_bytes=int(args.train_mb * 1e6))
    figures: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        peer = None
        if args.peer:
            peer = import_peer(args.peer, args.data, Path(temporary) / "peer")
        start = time.perf_counter()
        store = build_store(
            open_directory(args.data), tokenizer, cache_dir=Path(temporary), num_workers=num_usable_cpus()
        )
        build_s = time.perf_counter() - start
        text_mb = sum(shard.manifest["text_bytes"] for shard in store.shards()) / 1e6
        figures |= {"build_s": build_s, "build_mb_per_s": text_mb / build_s, "text_mb": text_mb}
        train_frac = 1 - 1 / store.num_shards
        epochs = {seq_len: one_epoch(store, tokenizer, seq_len=seq_len) for seq_len in sorted({t for t, _ in CASES})}
        for seq_len, batch_rows in CASES:
            num_rows, epoch_s, lost = epochs[seq_len]
            with_build = num_rows / (epoch_s + build_s * train_frac)
            ours, theirs = [], []
            other = Peer(peer, tokenizer, seq_len=seq_len, batch_rows=batch_rows) if peer else None
            with our_loader(store, tokenizer, seq_len=seq_len, batch_rows=batch_rows, max_epochs=None) as loader:
                for _ in range(args.rounds):
                    ours.append(rate(lambda loader=loader: next(loader), batch_rows, seconds=args.turn_s))
                    if other:
                        theirs.append(rate(other.next, batch_rows, seconds=args.turn_s))
            rows_per_s = statistics.median(ours)
            name = f"T{seq_len}_B{batch_rows}"
            figures[f"{name}_rows_per_s"] = rows_per_s
            figures[f"{name}_rows_per_s_with_build"] = with_build
            figures[f"{name}_lost_frac"] = lost
            row: list[results.Cell] = [seq_len, batch_rows, round(rows_per_s), round(with_build), f"{lost:.2%}"]
            if other:
                peer_rows_per_s, peer_lost = statistics.median(theirs), other.lost_frac()
                figures[f"{name}_peer_rows_per_s"] = peer_rows_per_s
                figures[f"{name}_peer_lost_frac"] = peer_lost
                figures[f"{name}_ratio"] = rows_per_s / peer_rows_per_s
                row += [round(peer_rows_per_s), f"{peer_lost:.1%}", f"{rows_per_s / peer_rows_per_s:.1f}x",
                        f"{with_build / peer_rows_per_s:.1f}x"]  # fmt: skip
            else:
                row += [None] * 4
            rows.append(row)
            sys.stdout.write("  ".join(f"{c} {v}" for c, v in zip(COLUMNS, row, strict=True)) + "\n")
    encoded_by = ", ".join(f"{name} {count}" for name, count in tokenizer.num_encoded_by.items() if count)
    notes = [
        f"Building the store: {text_mb:.0f} MB of text in {build_s:.1f} s, {text_mb / build_s:.1f} MB/s, once, with "
        f"{num_usable_cpus()} processes" + (f" (here: {encoded_by})" if encoded_by else "") + ".",
        "With building the store: rows of one epoch / (its part of the build + reading it once). A second epoch, another T "
        "and every further run read the same store.",
        f"Peer: its best-fit loader with {num_usable_cpus()} tiktoken threads and the same ids.",
        f"Median of {args.rounds} turns of {args.turn_s:g} s, ours and the peer's in alternation; packing is in ours.",
    ]
    path = results.write_result(
        "loader", title=f"Loader: rows and tokens lost (vocabulary {args.vocab_size}, best-fit)",
        command="python benchmarks/loader.py DATA_DIR --peer DIR", columns=COLUMNS, rows=rows, notes=notes, figures=figures,
        path=args.json,
    )  # fmt: skip
    sys.stdout.write("\n".join(notes) + f"\n{path}\n")


if __name__ == "__main__":
    main()
