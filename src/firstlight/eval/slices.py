"""Bits per byte of parts of a validation set: by corpus, by file, by the length of a document, by the place in a window.

Each part's score is its own ratio of sums, with its own standard error over its documents. The whole set's score is the
ratio of all sums, so it is no mean of the parts': a part counts by its bytes.

Shapes: N documents, K stretches of a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from firstlight.eval.bpb import DocumentSums
from firstlight.eval.document_scores import bits_per_byte

By = Literal["corpus", "shard", "length", "position"]

POSITIONS = (16, 64, 256, 1024, 4096, 16384)
"""Ends of the stretches of a window: each is four times as long as what comes before it."""

LENGTHS = ("shortest quarter", "second quarter", "third quarter", "longest quarter")


@dataclass(frozen=True)
class Slice:
    """A part and its score. num_documents: those with a byte in it. val_bpb: NaN where a loss is not finite."""

    name: str
    val_bpb: float
    val_bpb_stderr: float | None
    num_documents: int
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes null."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def corpus_of(shard: str) -> str:
    """The corpus that a shard belongs to: its folder, or the file's name where it stands in none.

    >>> corpus_of("wikipedia/shard_3.parquet"), corpus_of("books.jsonl.gz"), corpus_of("")
    ('wikipedia', 'books', '')
    """
    first, slash, _ = shard.partition("/")
    return first if slash else first.partition(".")[0]


def slices_by(by: By, sums: DocumentSums, shards: Sequence[str]) -> list[Slice]:
    """Scores of the parts, in the order in which their first documents come. shards: of each of the N documents."""
    if by == "position":
        return _by_position(sums)
    nats_N, bytes_N = sums.nats_NK.sum(axis=1), sums.num_bytes_NK.sum(axis=1)
    if by == "length":
        return _by_length(nats_N, bytes_N)
    names = [corpus_of(shard) if by == "corpus" else shard for shard in shards]
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return [_slice(name, nats_N[part], bytes_N[part]) for name, part in rows.items()]


def _by_length(nats_N: np.ndarray, bytes_N: np.ndarray) -> list[Slice]:
    found = []
    for name, part in zip(LENGTHS, np.array_split(np.argsort(bytes_N, kind="stable"), 4), strict=True):
        if len(part):
            low, high = int(bytes_N[part].min()), int(bytes_N[part].max())
            found.append(_slice(f"{name} ({low:,} to {high:,} bytes)", nats_N[part], bytes_N[part]))
    return found


def _by_position(sums: DocumentSums) -> list[Slice]:
    found = []
    starts = (0, *POSITIONS)
    for k, (start, end) in enumerate(zip(starts, (*POSITIONS, None), strict=True)):
        if k >= sums.nats_NK.shape[1]:
            break
        there_N = sums.num_tokens_NK[:, k] > 0
        is_last = k == sums.nats_NK.shape[1] - 1
        name = f"from place {start + 1:,} on" if is_last or end is None else f"places {start + 1:,} to {end:,}"
        if there_N.any():
            found.append(_slice(name, sums.nats_NK[there_N, k], sums.num_bytes_NK[there_N, k]))
    return found


def _slice(name: str, nats_n: np.ndarray, bytes_n: np.ndarray) -> Slice:
    bpb, stderr = bits_per_byte(nats_n, bytes_n)
    return Slice(name, bpb, stderr, len(nats_n), int(bytes_n.sum()))
