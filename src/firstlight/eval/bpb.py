"""Bits per byte: how well a model predicts whole documents, in a unit that does not depend on the tokenizer.

The one definition:

    - A document is its ids t0 .. t(n-1), without BOS. It is cut into consecutive windows of T targets; the last may be shorter.
    - A window's input is [BOS, t0 .. t(T-2)] and its targets are [t0 .. t(T-1)]: each id is predicted exactly once, from the
      ids before it in its window.
    - bpb = (sum of nats over all ids of all documents) / (ln 2 * sum of the UTF-8 bytes of all documents).

It is a ratio of two sums, never a mean of ratios: not over batches, not over windows, not over documents.

Shapes: B windows in a batch, T targets in a window, D width of the model, V vocabulary, N documents, K stretches of a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from firstlight.data.batch import IGNORE
from firstlight.errors import ConfigError, DataError
from firstlight.eval.rounds import Rounds
from firstlight.eval.windows import BLOCK_BATCHES, WIDTH_STEP, batches, blocks, windows
from firstlight.runtime.context import Runtime
from firstlight.tokens.document import Document
from firstlight.train.loss import token_losses


@dataclass(frozen=True)
class BpbResult:
    """A score and what it rests on.

    val_bpb: bits per UTF-8 byte; NaN where a loss was not finite.
    val_bpb_stderr: standard error over documents (None for fewer than two).
    nats: summed loss. num_bytes, num_tokens: of the documents scored. num_windows: forward rows.
    num_documents: documents scored. num_documents_total: documents given (None where a limit ended the reading of a stream
    before its length was known). num_empty: documents without a token, left out. num_nonfinite: documents whose loss was
    NaN or infinite. elapsed_s: wall-clock seconds of this process. is_cut: the time was over before all documents that
    were asked for had a score: another set of documents than that of a whole score, so the two must not be compared.
    """

    val_bpb: float
    val_bpb_stderr: float | None
    nats: float
    num_bytes: int
    num_documents: int
    num_tokens: int
    num_windows: int
    elapsed_s: float
    num_documents_total: int | None = None
    num_empty: int = 0
    num_nonfinite: int = 0
    is_cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes null."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    def describe(self) -> str:
        """The score in one line, with what it was measured on."""
        error = "" if self.val_bpb_stderr is None else f" +- {self.val_bpb_stderr:.4f}"
        total = "" if self.num_documents_total in (None, self.num_documents) else f" of {self.num_documents_total:,}"
        line = f"{self.val_bpb:.4f}{error} bits per byte on {self.num_documents:,}{total} documents, {self.num_bytes:,} bytes"
        line += f"; the loss of {self.num_nonfinite:,} was not finite" if self.num_nonfinite else ""
        return line + ("; cut by its time budget" if self.is_cut else "")


@dataclass(frozen=True)
class DocumentSums:
    """What each document that has a token was scored: (N, K) sums over the tokens of each stretch of its windows.

    In the order of the documents, on every rank. nats_NK: float64. num_bytes_NK, num_tokens_NK: int64.
    """

    nats_NK: np.ndarray
    num_bytes_NK: np.ndarray
    num_tokens_NK: np.ndarray


class _Tally:
    """What one rank has seen: per document of this rank, in order, sums by stretch; and counts over all ranks' documents.

    ends: of the K stretches of a window, ascending; the last is at least the window's length.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends = tuple(ends)
        self._nats_NK = np.zeros((1024, len(ends)), np.float64)
        self.num_bytes: list[np.ndarray] = []
        self.num_tokens: list[np.ndarray] = []
        self.num_windows_left: list[int] = []
        self.num_windows = 0
        self.num_taken = 0
        self.num_empty = 0
        self.is_cut = False

    def __len__(self) -> int:
        return len(self.num_windows_left)

    def begin(self, token_bytes_n: np.ndarray, is_target_n: np.ndarray | None, *, seq_len: int) -> int:
        """A new document, its ids' bytes and which of them count; its row."""
        if len(self) == len(self._nats_NK):
            self._nats_NK = np.concatenate([self._nats_NK, np.zeros_like(self._nats_NK)])
        self.num_windows_left.append(-(-len(token_bytes_n) // seq_len))
        places_n = np.arange(len(token_bytes_n)) % seq_len
        if is_target_n is not None:
            places_n, token_bytes_n = places_n[is_target_n], token_bytes_n[is_target_n]
        stretches_n = np.searchsorted(self.ends, places_n, side="right")
        num_bytes_K = np.bincount(stretches_n, weights=token_bytes_n, minlength=len(self.ends))
        self.num_bytes.append(num_bytes_K.astype(np.int64))
        self.num_tokens.append(np.bincount(stretches_n, minlength=len(self.ends)))
        return len(self) - 1

    def add(self, rows: Sequence[int], nats_BK: np.ndarray) -> None:
        """Summed losses of windows of these documents."""
        np.add.at(self._nats_NK, list(rows), nats_BK)
        for row in rows:
            self.num_windows_left[row] -= 1
        self.num_windows += len(rows)

    def num_complete(self) -> int:
        """Documents before the first one that has a window left."""
        return next((row for row, left in enumerate(self.num_windows_left) if left), len(self))

    def columns(self, num_rows: int) -> np.ndarray:
        """Nats, bytes and tokens of the first documents side by side; float64, (num_rows, 3K)."""
        shape = (num_rows, len(self.ends))
        num_bytes_NK = np.array(self.num_bytes[:num_rows], np.float64).reshape(shape)
        num_tokens_NK = np.array(self.num_tokens[:num_rows], np.float64).reshape(shape)
        return np.concatenate([self._nats_NK[:num_rows], num_bytes_NK, num_tokens_NK], axis=1)


@torch.no_grad()
def evaluate_bpb(
    model: nn.Module,
    documents: Iterable[Document],
    token_bytes: np.ndarray,
    *,
    bos_id: int,
    seq_len: int,
    batch_rows: int,
    runtime: Runtime,
    hidden: Callable[[torch.Tensor], torch.Tensor] | None = None,
    softcap: float | None = None,
    compute_dtype: torch.dtype | None = None,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    fixed_shape: bool = False,
    compiled_loss: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    is_over: Callable[[], bool] | None = None,
    forward_is_collective: bool = False,
    block_batches: int = BLOCK_BATCHES,
    stretches: Sequence[int] = (),
    documents_to: Callable[[DocumentSums], None] | None = None,
) -> BpbResult:
    """Bits per byte of ``model`` on ``documents``, with its standard error.

    Every rank gets the same documents in the same order and scores every ``world_size``-th of them. A batch holds at most
    ``batch_rows * seq_len`` tokens. ``token_bytes`` (V,) is the raw byte length of each id (0 for special ids). A document's
    loss mask, where it has one, leaves out both the nats and the bytes of the other ids.

    hidden: inputs_BT -> x_BTD (``model.hidden`` where not given, e.g. a compiled trunk otherwise).
    fixed_shape: every batch is (batch_rows, seq_len), for a compiled ``hidden``. compiled_loss: see `token_losses`.
    max_documents, max_tokens: score only the first documents: as many as fit whole, at least one.
    progress: called with (documents done by this rank, documents it will do or None where that is not known), also while
    this rank waits for the others' batches.
    should_stop: looked at before each batch; where it is true on any rank, all ranks end at their next batch.
    is_over: likewise; but then the result is of the first documents, those that all ranks had finished. block_batches: see
    `BLOCK_BATCHES`; with fewer, more documents are finished at such a time, and short windows are padded more.
    forward_is_collective: ``hidden`` needs all ranks at once (sharded weights), so a rank that has no more batches takes part
    with an empty one.
    documents_to: called on every rank at the end with the sums of each document. stretches: where a window is divided for
    them, ascending: ``(16, 64)`` gives the first 16 places, the next 48, and the rest.

    The model's mode is restored, no gradient is made and no random number is drawn.
    Raises DataError where there is no byte to score or an id is outside the vocabulary, ConfigError for sizes that cannot be,
    `Dropped` on all ranks after ``should_stop``. What one rank raises ends the evaluation on all.
    """
    _check_sizes(model, token_bytes, seq_len=seq_len, batch_rows=batch_rows)
    if (max_documents is not None and max_documents < 1) or (max_tokens is not None and max_tokens < 1):
        raise ConfigError(
            f"a limit of {max_documents} documents and {max_tokens} tokens leaves nothing to score",
            hint="use limits of at least 1, or none",
        )
    hidden = hidden or _hidden_of(model)
    softcap = _softcap_of(model) if softcap is None else softcap
    compute_dtype = compute_dtype or runtime.compute_dtype
    # Apple GPUs have no float64; sums over documents are float64 in any case.
    row_dtype = torch.float32 if runtime.device.type == "mps" else torch.float64
    runtime.synchronize()
    started_s = time.perf_counter()

    inner = [end for end in stretches if end < seq_len]
    starts, ends = [0, *inner], [*inner, seq_len]
    tally = _Tally(ends)
    given = len(documents) if isinstance(documents, Sized) else None
    taken = _take(documents, tally, max_documents=max_documents, max_tokens=max_tokens)
    mine = _share(taken, token_bytes, tally, runtime, seq_len=seq_len)
    expected = None if given is None else -(-min(given, max_documents or given) // runtime.world_size)
    if max_tokens is not None:
        expected = None
    idle_shape = (batch_rows, seq_len) if fixed_shape else (1, min(seq_len, WIDTH_STEP))

    def idle() -> None:
        if forward_is_collective:
            hidden(torch.full(idle_shape, bos_id, device=runtime.device))
        if progress is not None:
            progress(len(tally), expected)

    with _evaluation_mode(model), Rounds(runtime, should_stop, idle, is_over=is_over) as rounds:
        for block in blocks(windows(mine, bos_id=bos_id, seq_len=seq_len), batch_rows * block_batches):
            sums_BK: list[torch.Tensor] = []
            rows: list[int] = []
            for batch in batches(block, seq_len=seq_len, batch_rows=batch_rows, bos_id=bos_id, fixed_shape=fixed_shape):
                if not rounds.before_batch():
                    break
                inputs_BT = torch.from_numpy(batch.inputs_BT).to(runtime.device)
                targets_BT = torch.from_numpy(batch.targets_BT).to(runtime.device)
                x_BTD = hidden(inputs_BT)
                nats_BT = token_losses(
                    x_BTD,
                    # Not before `hidden`: sharded weights are whole only after it.
                    _head_of(model),
                    targets_BT,
                    softcap=softcap,
                    compute_dtype=compute_dtype,
                    compiled=compiled_loss,
                )
                nats_BT = torch.where(targets_BT == IGNORE, 0.0, nats_BT)[: len(batch.documents)].to(row_dtype)
                parts = [nats_BT[:, start:end].sum(dim=1) for start, end in zip(starts, ends, strict=True)]
                sums_BK.append(torch.stack(parts, dim=1))
                rows += batch.documents
            if rows:
                # One wait for the device a block.
                tally.add(rows, torch.cat(sums_BK).cpu().numpy())
            if progress is not None:
                progress(len(tally), expected)
            if rounds.is_cut:
                break
    total = given if given is not None else None if tally.is_cut else tally.num_taken + tally.num_empty
    num_rows = _rows_to_count(tally, runtime) if rounds.is_cut else len(tally)
    if documents_to is not None:
        documents_to(_gather(tally, num_rows, runtime))
    return _result(tally, num_rows, runtime, elapsed_from_s=started_s, num_documents_total=total, is_cut=rounds.is_cut)


def _take(
    documents: Iterable[Document], tally: _Tally, *, max_documents: int | None, max_tokens: int | None
) -> Iterator[Document]:
    """The first documents within the limits, without the empty ones (counted). The same on every rank."""
    num_tokens = 0
    for document in documents:
        if len(document) == 0:
            tally.num_empty += 1
            continue
        num_tokens += len(document)
        over = max_tokens is not None and num_tokens > max_tokens and tally.num_taken > 0
        if over or (max_documents is not None and tally.num_taken == max_documents):
            tally.is_cut = True
            return
        tally.num_taken += 1
        yield document


def _share(
    documents: Iterator[Document], token_bytes: np.ndarray, tally: _Tally, runtime: Runtime, *, seq_len: int
) -> Iterator[tuple[int, Document]]:
    """This rank's documents with their row in the tally, checked and with their bytes counted."""
    for index, document in enumerate(documents):
        if index % runtime.world_size != runtime.rank:
            continue
        ids = np.asarray(document.ids)
        if int(ids.max()) >= len(token_bytes) or int(ids.min()) < 0:
            bad = ids[(ids >= len(token_bytes)) | (ids < 0)][0]
            raise DataError(
                f"id {bad} in document {document.source or index} is outside the vocabulary of {len(token_bytes)} ids",
                hint="the documents were tokenised with another tokenizer than the run's",
            )
        yield tally.begin(token_bytes[ids], document.loss_mask, seq_len=seq_len), document


def _rows_to_count(tally: _Tally, runtime: Runtime) -> int:
    """Of a cut evaluation: this rank's documents before the first one, of any rank, that is not finished."""
    first_open = runtime.rank + runtime.world_size * tally.num_complete()
    num_documents = -int(runtime.control.largest(-float(first_open)))
    return len(range(runtime.rank, num_documents, runtime.world_size))


def _gather(tally: _Tally, num_rows: int, runtime: Runtime) -> DocumentSums:
    (n,) = _sum_over_ranks([num_rows], runtime)
    columns = np.zeros((int(n), 3 * len(tally.ends)))
    columns[runtime.rank :: runtime.world_size] = tally.columns(num_rows)
    nats_NK, num_bytes_NK, num_tokens_NK = np.split(
        np.array(_sum_over_ranks(columns, runtime)).reshape(columns.shape), 3, axis=1
    )
    return DocumentSums(nats_NK, num_bytes_NK.astype(np.int64), num_tokens_NK.astype(np.int64))


def _result(
    tally: _Tally,
    num_rows: int,
    runtime: Runtime,
    *,
    elapsed_from_s: float,
    num_documents_total: int | None,
    is_cut: bool,
) -> BpbResult:
    nats_NK, num_bytes_NK, num_tokens_NK = np.split(tally.columns(num_rows), 3, axis=1)
    nats_N, bytes_N = nats_NK.sum(axis=1), num_bytes_NK.sum(axis=1)
    num_nonfinite = int((~np.isfinite(nats_N)).sum())
    sums = [nats_N.sum(), bytes_N.sum(), num_rows, num_tokens_NK.sum(), tally.num_windows, num_nonfinite]
    nats, num_bytes, n, num_tokens, num_windows, num_nonfinite = _sum_over_ranks(sums, runtime)
    if num_bytes == 0 and not is_cut:
        raise DataError(
            f"bits per byte need at least one byte of text: {int(n)} documents with {int(num_tokens)} scored tokens have none",
            hint="give validation documents with text in them (special tokens have no bytes)",
        )
    ratio = nats / num_bytes if num_bytes else math.nan
    # As `bits_per_byte` says, from the ranks' sums.
    (squares,) = _sum_over_ranks([((nats_N - ratio * bytes_N) ** 2).sum()], runtime)
    stderr = math.sqrt(n / (n - 1) * squares) / num_bytes / math.log(2) if n > 1 and num_bytes else None
    runtime.synchronize()
    return BpbResult(
        val_bpb=ratio / math.log(2),
        val_bpb_stderr=stderr,
        nats=nats,
        num_bytes=int(num_bytes),
        num_documents=int(n),
        num_tokens=int(num_tokens),
        num_windows=int(num_windows),
        elapsed_s=time.perf_counter() - elapsed_from_s,
        num_documents_total=num_documents_total,
        num_empty=tally.num_empty,
        num_nonfinite=int(num_nonfinite),
        is_cut=is_cut,
    )


def _sum_over_ranks(values: Sequence[float] | np.ndarray, runtime: Runtime) -> list[Any]:
    device = torch.device("cpu") if runtime.device.type == "mps" else runtime.device
    return runtime.sum(torch.as_tensor(values, dtype=torch.float64, device=device)).tolist()


def _check_sizes(model: nn.Module, token_bytes: np.ndarray, *, seq_len: int, batch_rows: int) -> None:
    vocab_size = _head_of(model).shape[0]
    if len(token_bytes) > vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(token_bytes)} ids and the model predicts {vocab_size}",
            hint="use the tokenizer that the model was trained with",
        )
    if seq_len < 1 or batch_rows < 1:
        raise ConfigError(f"windows of {seq_len} tokens, {batch_rows} in a batch", hint="both must be at least 1")
    context = getattr(getattr(model, "config", None), "max_seq_len", None)
    if context is not None and seq_len > context:
        raise ConfigError(
            f"windows of {seq_len} tokens are longer than the model's context of {context}",
            hint=f"use at most {context}",
        )


def _head_of(model: nn.Module) -> torch.Tensor:
    return model.lm_head.weight  # pyrefly: ignore


def _hidden_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return model.hidden  # pyrefly: ignore


def _softcap_of(model: nn.Module) -> float:
    return model.config.softcap  # pyrefly: ignore


@contextmanager
def _evaluation_mode(model: nn.Module) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
