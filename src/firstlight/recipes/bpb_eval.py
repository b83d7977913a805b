"""Bits per byte of a finished run on a set of documents, by document; an evaluation that was killed goes on where it was.

Documents are scored in chunks, in their order. What is done is kept in the run's folder while more is to come
(``scores/partial-KEY.npz``, where KEY stands for all that decides the numbers) and taken away at the end. Chunks are the same
for any number of processes, so a killed evaluation may go on with more or fewer of them.

Shapes: N documents, K stretches of a window.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from firstlight.errors import ConfigError
from firstlight.eval.bpb import BpbResult, DocumentSums, evaluate_bpb
from firstlight.eval.document_scores import FOLDER, bits_per_byte
from firstlight.runtime.context import Runtime
from firstlight.tokens.document import Document

CHUNK_DOCUMENTS = 2048
SAVE_EVERY_S = 5.0


def first_documents(
    documents: Sequence[Document], *, max_documents: int | None, max_tokens: int | None
) -> list[Document]:
    """The first documents with a token, as many as fit whole into the limits, at least one. Raises ConfigError for limits below 1."""
    if (max_documents is not None and max_documents < 1) or (max_tokens is not None and max_tokens < 1):
        raise ConfigError(
            f"a limit of {max_documents} documents and {max_tokens} tokens leaves nothing to score",
            hint="use limits of at least 1, or none",
        )
    found: list[Document] = []
    num_tokens = 0
    for document in documents:
        num_tokens += len(document)
        over = max_tokens is not None and num_tokens > max_tokens and found
        if over or (max_documents is not None and len(found) == max_documents):
            break
        if len(document):
            found.append(document)
    return found


def score_documents(
    model: nn.Module,
    documents: Sequence[Document],
    token_bytes: np.ndarray,
    *,
    bos_id: int,
    seq_len: int,
    batch_rows: int,
    runtime: Runtime,
    run_dir: Path,
    identity: dict[str, Any],
    stretches: Sequence[int] = (),
    max_documents: int | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    report: Callable[[str], None] = lambda text: None,
    chunk_documents: int = CHUNK_DOCUMENTS,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[BpbResult, DocumentSums]:
    """Score and sums by document; whole on rank 0, and of this launch's documents on the others. Collective.

    identity: what else decides the numbers, such as hashes of weights, documents and tokenizer. report: told what is taken
    from an evaluation that was killed. Otherwise as `evaluate_bpb`.
    """
    started_s = clock()
    chosen = first_documents(documents, max_documents=max_documents, max_tokens=max_tokens)
    facts = identity | {
        "seq_len": seq_len,
        "batch_rows": batch_rows,
        "stretches": list(stretches),
        "num_documents": len(chosen),
        "chunk_documents": chunk_documents,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    partial = _Partial(run_dir / FOLDER / f"partial-{key}.npz", report)
    kept = partial.read() if runtime.is_main else None
    num_done = int(runtime.control.broadcast_text(str(0 if kept is None else len(kept.nats_NK))))
    if kept is not None and num_done:
        report(f"{num_done:,} documents were scored before this evaluation was ended; it goes on from there")
    parts = [kept] if kept is not None else []
    num_windows = 0
    saved_s = clock()
    # An empty set goes to `evaluate_bpb` too, which says what is wrong with it.
    for start in range(num_done, max(1, len(chosen)), chunk_documents):

        def show(done: int, total: int | None, start: int = start) -> None:
            if progress is not None:
                progress(start + done * runtime.world_size, len(chosen))

        result = evaluate_bpb(
            model, chosen[start : start + chunk_documents], token_bytes, bos_id=bos_id, seq_len=seq_len,
            batch_rows=batch_rows, runtime=runtime, stretches=stretches, progress=show, documents_to=parts.append,
        )  # fmt: skip
        num_windows += result.num_windows
        is_last = start + chunk_documents >= len(chosen)
        if runtime.is_main and not is_last and clock() - saved_s >= SAVE_EVERY_S:
            partial.write(_joined(parts))
            saved_s = clock()
    sums = _joined(parts)
    if runtime.is_main:
        partial.remove()
    windows_before = sum(-(-len(document) // seq_len) for document in chosen[:num_done])
    num_empty = sum(len(document) == 0 for document in documents)
    made = _result(sums, num_windows=num_windows + windows_before, elapsed_s=clock() - started_s)
    return replace(made, num_documents_total=len(documents), num_empty=num_empty), sums


def _joined(parts: Sequence[DocumentSums]) -> DocumentSums:
    return DocumentSums(
        np.concatenate([part.nats_NK for part in parts]),
        np.concatenate([part.num_bytes_NK for part in parts]),
        np.concatenate([part.num_tokens_NK for part in parts]),
    )


def _result(sums: DocumentSums, *, num_windows: int, elapsed_s: float) -> BpbResult:
    nats_N, bytes_N = sums.nats_NK.sum(axis=1), sums.num_bytes_NK.sum(axis=1)
    bpb, stderr = bits_per_byte(nats_N, bytes_N)
    return BpbResult(
        val_bpb=bpb,
        val_bpb_stderr=stderr,
        nats=float(nats_N.sum()),
        num_bytes=int(bytes_N.sum()),
        num_documents=len(nats_N),
        num_tokens=int(sums.num_tokens_NK.sum()),
        num_windows=num_windows,
        elapsed_s=elapsed_s,
        num_nonfinite=int((~np.isfinite(nats_N)).sum()),
    )


def result_of(parts: Sequence[tuple[BpbResult, DocumentSums]]) -> tuple[BpbResult, DocumentSums]:
    """The score of several sets together: a ratio of all their sums."""
    if len(parts) == 1:
        return parts[0]
    sums = _joined([sums for _, sums in parts])
    results = [result for result, _ in parts]
    made = _result(sums, num_windows=sum(r.num_windows for r in results), elapsed_s=sum(r.elapsed_s for r in results))
    total = sum(r.num_documents_total or 0 for r in results)
    return replace(made, num_documents_total=total, num_empty=sum(r.num_empty for r in results)), sums


class _Partial:
    """Sums of the first documents, while the others are scored. Used by one process."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path, self._report = path, report

    def read(self) -> DocumentSums | None:
        """What is kept, or None. A damaged file is said and passed over."""
        if not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                return DocumentSums(file["nats_NK"], file["num_bytes_NK"], file["num_tokens_NK"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self._report(f"{self._path} is damaged ({error}); the evaluation begins again")
            return None

    def write(self, sums: DocumentSums) -> None:
        """Keep it. Where the disk refuses, that is said once: the evaluation itself goes on."""
        temporary = self._path.with_name(f".{self._path.stem}.{os.getpid()}.npz")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(temporary, nats_NK=sums.nats_NK, num_bytes_NK=sums.num_bytes_NK, num_tokens_NK=sums.num_tokens_NK)
            os.replace(temporary, self._path)
        except OSError as error:
            self._report(f"what is scored so far could not be kept in {self._path}: {error.strerror or error}")
            self._report, self.write = (lambda text: None), (lambda sums: None)

    def remove(self) -> None:
        # What cannot be removed could not be written either, or is found again by its key.
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
