"""What is in a token store, as one dictionary of numbers: for ``data info``, plans and run records."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstlight.data.packing import PACKINGS, PackedRows, pack
from firstlight.data.sources.base import ReadCounts
from firstlight.data.split import ValSpec, resolve_for, split_documents, split_shards, val_content_hash
from firstlight.data.store import StoredShard, TokenStore

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def store_stats(
    store: TokenStore, *, seq_len: int | None = None, val_spec: ValSpec | str | None = None
) -> dict[str, Any]:
    """Statistics of a store; waits until all its shards are built.

    seq_len: T, adds what each packing uses and pads in one epoch. val_spec: adds the two sides of the split, and makes
    the packing that of the training side. All values can be written as JSON. Keys:

    source, tokenizer_hash, data_hash, vocab_size; documents, tokens (without BOS), text_bytes, bytes_per_token (None
    where there are no tokens), duplicate_documents (copies beyond the first); tokens_per_document {mean, p0 ... p100};
    skipped {reason: count}, skipped_examples; shards [{name, documents, tokens, text_bytes, skipped}]; with val_spec:
    val {spec, documents, tokens, text_bytes, content_hash} and train {...}; with seq_len: packing {bestfit, stream},
    each as ``packing_stats``.
    """
    shards = list(store.shards())
    lengths = np.concatenate([shard.lengths for shard in shards])
    hashes = np.concatenate([shard.doc_hashes for shard in shards])
    counts = [ReadCounts(**shard.manifest["counts"]) for shard in shards]
    total = ReadCounts()
    for each in counts:
        total.add(each)
    tokens = int(lengths.sum())
    text_bytes = sum(int(shard.num_text_bytes.sum()) for shard in shards)
    stats: dict[str, Any] = {
        "source": store.manifest["source"],
        "tokenizer_hash": store.tokenizer_hash,
        "data_hash": store.data_hash,
        "vocab_size": store.vocab_size,
        "documents": len(lengths),
        "tokens": tokens,
        "text_bytes": text_bytes,
        "bytes_per_token": text_bytes / tokens if tokens else None,
        "duplicate_documents": len(hashes) - len(np.unique(hashes)),
        "tokens_per_document": _length_stats(lengths),
        "skipped": total.skipped_by_reason(),
        "skipped_examples": total.examples,
        "shards": [
            {
                "name": shard.name,
                "documents": shard.num_documents,
                "tokens": shard.num_tokens,
                "text_bytes": shard.manifest["text_bytes"],
                "skipped": count.skipped_by_reason(),
            }
            for shard, count in zip(shards, counts, strict=True)
        ],
    }
    train_lengths = [shard.lengths for shard in shards]
    if val_spec is not None:
        val = resolve_for(store, val_spec)
        picked = {
            split: [
                (shards[i], split_documents(shards[i], val, split)) for i in split_shards(val, store.shard_names, split)
            ]
            for split in ("train", "val")
        }
        stats["val"] = _side_stats(picked["val"]) | {"spec": str(val), "content_hash": val_content_hash(store, val)}
        stats["train"] = _side_stats(picked["train"])
        train_lengths = [shard.lengths[docs] for shard, docs in picked["train"]]
    if seq_len is not None:
        stats["seq_len"] = seq_len
        stats["packing"] = {
            name: packing_stats([pack(name, each, row_len=seq_len + 1, seed=0) for each in train_lengths])
            for name in PACKINGS
        }
    return stats


def packing_stats(packed: list[PackedRows]) -> dict[str, Any]:
    """What a packing uses and pads, summed over shards. Fractions are None where there is nothing to divide by.

    rows; tokens_used_frac: ids that are a target; positions_filled_frac and positions_padded; crops: places where a
    row's end cuts a document; rows_begin_at_bos_frac.
    """

    def total(attribute: str) -> int:
        return sum(getattr(each, attribute) for each in packed)

    rows, tokens, positions = total("num_rows"), total("tokens_total"), total("positions_total")
    begin_at_bos = sum(int(each.with_bos[each.row_offsets[:-1]].sum()) for each in packed)
    return {
        "rows": rows,
        "tokens_used_frac": total("tokens_used") / tokens if tokens else None,
        "tokens_dropped": tokens - total("tokens_used"),
        "positions_filled_frac": total("positions_filled") / positions if positions else None,
        "positions_padded": total("positions_padded"),
        "crops": total("num_crops"),
        "rows_begin_at_bos_frac": begin_at_bos / rows if rows else None,
    }


def _length_stats(lengths: np.ndarray) -> dict[str, float | None]:
    stats: dict[str, float | None] = dict.fromkeys(["mean", *(f"p{p}" for p in PERCENTILES)])
    if len(lengths):
        stats["mean"] = float(lengths.mean())
        stats.update({f"p{p}": float(np.percentile(lengths, p)) for p in PERCENTILES})
    return stats


def _side_stats(picked: list[tuple[StoredShard, np.ndarray]]) -> dict[str, int]:
    return {
        "documents": sum(len(docs) for _, docs in picked),
        "tokens": sum(int(shard.lengths[docs].sum()) for shard, docs in picked),
        "text_bytes": sum(int(shard.num_text_bytes[docs].sum()) for shard, docs in picked),
    }
