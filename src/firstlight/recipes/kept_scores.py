"""The scores of a run by document: made after an evaluation, and kept in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from firstlight.errors import DataError
from firstlight.eval.bpb import DocumentSums
from firstlight.eval.document_scores import (
    DocumentScores,
    read_document_scores,
    scores_path,
    slices_of,
    write_document_scores,
)
from firstlight.tokens.document import Document


def document_scores(
    sums: DocumentSums,
    documents: Sequence[Document],
    *,
    run: str,
    step: int,
    val_hash: str,
    tokenizer_hash: str,
    data: str,
    val: str,
    max_seq_len: int,
    dtype: str,
) -> DocumentScores:
    """Sums with the shards that the documents are from, and a header of what was scored by whom."""
    n = len(sums.nats_NK)
    header: dict[str, Any] = {
        "run": run,
        "step": step,
        "val_hash": val_hash,
        "tokenizer_hash": tokenizer_hash,
        "data": data,
        "val": val,
        "max_seq_len": max_seq_len,
        "dtype": dtype,
        "num_documents_total": len(documents),
        "num_empty": sum(len(document) == 0 for document in documents),
    }
    return DocumentScores(
        header,
        sums.nats_NK.sum(axis=1),
        sums.num_bytes_NK.sum(axis=1),
        sums.num_tokens_NK.sum(axis=1),
        slices_of(documents)[:n],
    )


def keep_scores(run_dir: Path, scores: DocumentScores, *, warn: Callable[[str], None]) -> Path | None:
    """Write scores into a run's folder, but never over those of more documents. Their path; None where there is none.

    A disk that refuses is a warning: the score itself stands elsewhere.
    """
    path = scores_path(run_dir, step=scores.header["step"], val_hash=scores.header["val_hash"])
    try:
        if path.exists():
            before = read_document_scores(path)
            if len(before) > len(scores):
                return path
            for key, unit in (("max_seq_len", "windows of {} tokens"), ("dtype", "{}")):
                if before.header.get(key) != scores.header[key]:
                    old, new = (unit.format(one.header.get(key)) for one in (before, scores))
                    warn(f"the scores by document in {path} were of {old} and are replaced by those of {new}")
    except DataError as error:
        warn(f"{error.what}; it is written anew")
    try:
        return write_document_scores(path, scores)
    except OSError as error:
        warn(f"the scores by document could not be written to {path}: {error.strerror or error}")
        return None
