"""Numbers about a corpus, before and after a tokenizer: what `firstlight data info` prints."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.data.sources.base import Progress, ReadCounts, Source
from firstlight.data.sources.reading import read_documents
from firstlight.data.store import hash_file
from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def local_part(source: Source) -> Source:
    """The source with only those shards that are on this machine."""
    return replace(source, shards=tuple(shard for shard in source.shards if shard.path is not None))


def measure_text(source: Source, *, progress: Progress | None = None) -> dict[str, Any]:
    """Documents, bytes, lengths, skips and hashes of the shards that are on this machine; each file is read once.

    Lengths are UTF-8 bytes of a document; a percentile is a length that occurs (the nearest rank).
    ``data_hash`` is that of the token store: sha256 over the names and sha256 of all files, in order.
    Raises DataError where a file is damaged, or there is no document at all.
    """
    local = local_part(source)
    if not local.shards:
        raise DataError(f"nothing of {source.name} is on this machine yet", hint=f"firstlight data fetch {source.name}")
    total = ReadCounts()
    lengths: list[int] = []
    shards: list[dict[str, Any]] = []
    data_hash = hashlib.sha256()
    for i, shard in enumerate(local.shards):
        assert shard.path is not None
        counts = ReadCounts()
        lengths += [len(text.encode()) for _, text in read_documents(shard.path, counts, name=shard.name)]
        sha256 = hash_file(shard.path)
        data_hash.update(f"{shard.name}\0{sha256}\n".encode())
        total.add(counts)
        shards.append(
            {
                "name": shard.name, "num_bytes": shard.path.stat().st_size, "sha256": sha256,
                "documents": counts.documents, "text_bytes": counts.text_bytes, "skipped": counts.skipped_by_reason(),
            }
        )  # fmt: skip
        if progress is not None:
            progress("reading", i + 1, len(local.shards))
    if not lengths:
        raise DataError(f"{source.name} has no documents: {total.skipped} rows were empty or null")
    return {
        "source": source.name,
        "documents": total.documents,
        "text_bytes": total.text_bytes,
        "document_bytes_percentiles": percentiles(np.array(lengths)),
        "skipped": total.skipped_by_reason(),
        "skipped_examples": total.examples,
        "data_hash": data_hash.hexdigest(),
        "val_shard": source.val_shard,
        "facts": source.facts,
        "ignored": list(source.ignored),
        "shards": shards,
        "not_fetched": [shard.name for shard in source.shards if shard.path is None],
    }


def measure_tokens(
    source: Source, tokenizer: Tokenizer, *, max_seq_len: int, cache_dir: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Tokens, bytes per token, and what each packing makes of rows of ``max_seq_len`` targets (local shards only).

    The token store that training uses is built on the way. ``crops`` counts documents' cuts between rows.
    """
    from firstlight.data.build import build_store
    from firstlight.data.packing import PACKINGS, pack

    with build_store(local_part(source), tokenizer, cache_dir=cache_dir, progress=progress) as store:
        shards = list(store.shards())
        lengths = np.concatenate([shard.lengths for shard in shards])
        text_bytes = sum(int(shard.num_text_bytes.sum()) for shard in shards)
        packings = {}
        for name in PACKINGS:
            packed = [pack(name, shard.lengths, row_len=max_seq_len + 1, seed=0) for shard in shards]
            packings[name] = {
                "rows": sum(rows.num_rows for rows in packed),
                "tokens_used": sum(rows.tokens_used for rows in packed),
                "tokens_dropped": sum(rows.tokens_total - rows.tokens_used for rows in packed),
                "positions_filled": sum(rows.positions_filled for rows in packed),
                "positions_empty": sum(rows.positions_total - rows.positions_filled for rows in packed),
                "crops": sum(rows.num_crops for rows in packed),
            }
    num_tokens = int(lengths.sum())
    return {
        "tokenizer_hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
        "tokens": num_tokens,
        "bytes_per_token": text_bytes / num_tokens,
        "document_tokens_percentiles": percentiles(lengths),
        "max_seq_len": max_seq_len,
        "packing": packings,
    }


def percentiles(values: np.ndarray) -> dict[str, int]:
    """``{"p0": smallest, ..., "p100": largest}``, nearest rank."""
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {f"p{each}": int(value) for each, value in zip(PERCENTILES, found, strict=True)}
