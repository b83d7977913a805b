"""Scores by document on disk: what a model lost on each validation document, so that two models can be compared in pairs.

One file for a checkpoint and a set of documents::

    runs/NAME/scores/step_00001234-<first 12 of val_hash>.jsonl

Its first line is a header (which run, step, documents, tokenizer, window and dtype); then there is a line for each document,
in the defined order of the documents::

    {"nats": 812.4, "num_bytes": 1032, "num_tokens": 301, "slice": "shard_00003.parquet"}

Documents without a token are left out. The lines are strict JSON: a loss that is not finite is null.

Shapes: N documents.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.errors import DataError
from firstlight.tokens.document import Document

KIND = "document_scores"
SCHEMA = 1
FOLDER = "scores"

_NAME = re.compile(r"step_(\d+)-[0-9a-f]+\.jsonl")
_HINT = "score the run again: firstlight eval bpb RUN"


@dataclass(frozen=True)
class DocumentScores:
    """Scores of N documents, in their defined order.

    header: run, step, val_hash, tokenizer_hash, data, val, max_seq_len, dtype and num_documents_total (of the whole set).
    nats: float64, (N,): summed loss of each document. num_bytes, num_tokens: int64, (N,). slices: the shard of each.
    """

    header: dict[str, Any]
    nats: np.ndarray
    num_bytes: np.ndarray
    num_tokens: np.ndarray
    slices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def is_whole(self) -> bool:
        """Whether every document of the set has a score (those without a token aside)."""
        return len(self) + int(self.header.get("num_empty", 0)) == self.header["num_documents_total"]


def bits_per_byte(nats_N: np.ndarray, num_bytes_N: np.ndarray) -> tuple[float, float | None]:
    """(bits per byte, standard error over documents): a ratio of two sums. No error for fewer than two documents.

    The delta method for a ratio over n sampled documents (Cochran, Sampling Techniques, 3rd ed., eq. 6.13), without the
    correction for a finite population: the documents stand for text that was not sampled. NaN where there is no byte.
    """
    total = float(num_bytes_N.sum())
    if total == 0:
        return math.nan, None
    n = len(nats_N)
    ratio = float(nats_N.sum()) / total
    squares = float(((nats_N - ratio * num_bytes_N) ** 2).sum())
    stderr = math.sqrt(n / (n - 1) * squares) / total / math.log(2) if n > 1 else None
    return ratio / math.log(2), stderr


def slice_of(document: Document) -> str:
    """The shard that a document is from; empty where that is not known.

    >>> import numpy
    >>> slice_of(Document(numpy.array([1]), source="wiki/shard_00003.parquet:117"))
    'wiki/shard_00003.parquet'
    """
    return document.source.rpartition(":")[0]


def slices_of(documents: Iterable[Document]) -> tuple[str, ...]:
    """The shard of each document that has a token, in order."""
    return tuple(slice_of(document) for document in documents if len(document))


def scores_path(run_dir: Path, *, step: int, val_hash: str) -> Path:
    """Where the scores of a run's checkpoint on a set of documents are kept."""
    return run_dir / FOLDER / f"step_{step:08d}-{val_hash[:12]}.jsonl"


def write_document_scores(path: Path, scores: DocumentScores) -> Path:
    """Write scores at once or not at all; the path. Raises OSError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"kind": KIND, "schema": SCHEMA, **scores.header, "num_documents": len(scores)}
    try:
        with temporary.open("w", encoding="utf-8") as out:
            out.write(json.dumps(header) + "\n")
            out.writelines(_lines(scores))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _lines(scores: DocumentScores) -> Iterable[str]:
    columns = (scores.nats.tolist(), scores.num_bytes.tolist(), scores.num_tokens.tolist(), scores.slices)
    for nats, num_bytes, num_tokens, name in zip(*columns, strict=True):
        row = {
            "nats": nats if math.isfinite(nats) else None,
            "num_bytes": num_bytes,
            "num_tokens": num_tokens,
            "slice": name,
        }
        yield json.dumps(row) + "\n"


def read_document_scores(path: Path) -> DocumentScores:
    """Inverse of `write_document_scores`. Raises DataError for a file that is missing, damaged or of another kind."""
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        header = json.loads(first)
        rows = [json.loads(line) for line in lines]
        if header["kind"] != KIND or header["schema"] != SCHEMA:
            raise ValueError(f"kind {header['kind']!r}, schema {header['schema']!r}")
        if len(rows) != header["num_documents"]:
            raise ValueError(f"{len(rows)} documents of {header['num_documents']}")
        return DocumentScores(
            header=header,
            nats=_column(rows, "nats", np.float64),
            num_bytes=_column(rows, "num_bytes", np.int64),
            num_tokens=_column(rows, "num_tokens", np.int64),
            slices=tuple(str(row["slice"]) for row in rows),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no scores of documents, or is damaged: {error}", hint=_HINT) from None


def _column(rows: list[Mapping[str, Any]], key: str, dtype: type[np.generic]) -> np.ndarray:
    values = [row[key] for row in rows]
    if dtype is np.float64:
        values = [math.nan if value is None else value for value in values]
    return np.array(values, dtype=dtype)


def find_document_scores(run_dir: Path) -> list[Path]:
    """The files of scores of a run, the newest step last; empty where there are none."""
    found = [
        (int(match[1]), path) for path in (run_dir / FOLDER).glob("*.jsonl") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]
