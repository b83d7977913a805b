"""Numbers about a corpus as it lies on disk, before any tokenizer; those after one are in ``stats.py``."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from firstlight.data.sources.base import Progress, ReadCounts, Source
from firstlight.data.sources.reading import read_documents
from firstlight.data.stats import PERCENTILES
from firstlight.data.store import hash_file
from firstlight.errors import DataError


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


def percentiles(values: np.ndarray) -> dict[str, int]:
    """``{"p0": smallest, ..., "p100": largest}``, nearest rank."""
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {f"p{each}": int(value) for each, value in zip(PERCENTILES, found, strict=True)}
