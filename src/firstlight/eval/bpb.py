"""Bits per byte: how well a model predicts whole documents, in a unit that does not depend on the tokenizer.

The one definition:

    - A document is its ids t0 .. t(n-1), without BOS. It is cut into consecutive windows of T targets; the last may be shorter.
    - A window's input is [BOS, t0 .. t(T-2)] and its targets are [t0 .. t(T-1)]: each id is predicted exactly once, from the
      ids before it in its window.
    - bpb = (sum of nats over all ids of all documents) / (ln 2 * sum of the UTF-8 bytes of all documents).

It is a ratio of two sums, never a mean of ratios: not over batches, not over windows, not over documents.

Shapes: B windows in a batch, T targets in a window, D width of the model, V vocabulary.
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
from firstlight.runtime.context import Runtime
from firstlight.tokens.document import Document
from firstlight.train.guard import Dropped
from firstlight.train.loss import token_losses

BLOCK_BATCHES = 16
"""Windows are sorted by length inside blocks of this many full batches, so that short ones share a batch."""

WIDTH_STEP = 32
"""Widths of batches are multiples of this many tokens, so that there are few different shapes."""


@dataclass(frozen=True)
class BpbResult:
    """A score and what it rests on.

    val_bpb: bits per UTF-8 byte; NaN where a loss was not finite.
    val_bpb_stderr: standard error over documents (None for fewer than two).
    nats: summed loss. num_bytes, num_tokens: of the documents scored. num_windows: forward rows.
    num_documents: documents scored. num_documents_total: documents given (None where a limit ended the reading of a stream
    before its length was known). num_empty: documents without a token, left out. num_nonfinite: documents whose loss was
    NaN or infinite. elapsed_s: wall-clock seconds of this process.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes null."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    def describe(self) -> str:
        """The score in one line, with what it was measured on."""
        error = "" if self.val_bpb_stderr is None else f" +- {self.val_bpb_stderr:.4f}"
        total = "" if self.num_documents_total in (None, self.num_documents) else f" of {self.num_documents_total:,}"
        line = f"{self.val_bpb:.4f}{error} bits per byte on {self.num_documents:,}{total} documents, {self.num_bytes:,} bytes"
        return line + (f"; the loss of {self.num_nonfinite:,} was not finite" if self.num_nonfinite else "")


@dataclass(frozen=True)
class _Window:
    document: int
    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class _WindowBatch:
    documents: list[int]
    inputs_BT: np.ndarray
    targets_BT: np.ndarray


class _Tally:
    """What one rank has seen: per document of this rank, in order, nats and bytes; and counts over all ranks' documents."""

    def __init__(self) -> None:
        self.nats: list[float] = []
        self.num_bytes: list[int] = []
        self.num_tokens = 0
        self.num_windows = 0
        self.num_taken = 0
        self.num_empty = 0
        self.is_cut = False


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
    forward_is_collective: bool = False,
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
    forward_is_collective: ``hidden`` needs all ranks at once (sharded weights), so a rank that has no more batches takes part
    with an empty one.

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

    tally = _Tally()
    given = len(documents) if isinstance(documents, Sized) else None
    taken = _take(documents, tally, max_documents=max_documents, max_tokens=max_tokens)
    mine = _share(taken, token_bytes, tally, runtime)
    expected = None if given is None else -(-min(given, max_documents or given) // runtime.world_size)
    if max_tokens is not None:
        expected = None
    idle_width = seq_len if fixed_shape else min(seq_len, WIDTH_STEP)
    idle_BT = torch.full((batch_rows if fixed_shape else 1, idle_width), bos_id, device=runtime.device)

    def idle() -> None:
        if forward_is_collective:
            hidden(idle_BT)
        if progress is not None:
            progress(len(tally.nats), expected)

    with _evaluation_mode(model), _Rounds(runtime, should_stop, idle) as rounds:
        for block in _blocks(_windows(mine, bos_id=bos_id, seq_len=seq_len), batch_rows * BLOCK_BATCHES):
            sums_B: list[torch.Tensor] = []
            rows: list[int] = []
            for batch in _batches(
                block, seq_len=seq_len, batch_rows=batch_rows, bos_id=bos_id, fixed_shape=fixed_shape
            ):
                rounds.before_batch()
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
                nats_BT = torch.where(targets_BT == IGNORE, 0.0, nats_BT)
                sums_B.append(nats_BT.to(row_dtype).sum(dim=1)[: len(batch.documents)])
                rows += batch.documents
            # One wait for the device a block.
            for row, nats in zip(rows, torch.cat(sums_B).tolist(), strict=True):
                tally.nats[row] += nats
            tally.num_windows += len(rows)
            if progress is not None:
                progress(len(tally.nats), expected)
    total = given if given is not None else None if tally.is_cut else tally.num_taken + tally.num_empty
    return _result(tally, runtime, elapsed_from_s=started_s, num_documents_total=total)


class _Rounds:
    """Ranks agree before each batch that all go on, so that none waits in a collective for one that has left.

    Nobody knows how many batches the others have. So a rank that has done all of its own keeps answering, until all have:
    every rank takes part in the same number of agreements, which is what makes it safe to end in the middle. One costs some
    0.4 ms between two processes of one machine, in CPU memory, while the device works on.
    """

    DONE, WORKING, STOP, FAILED = range(4)

    def __init__(self, runtime: Runtime, should_stop: Callable[[], bool] | None, idle: Callable[[], None]) -> None:
        """idle: called in place of each batch that others still have."""
        self._runtime, self._should_stop, self._idle = runtime, should_stop, idle
        self._is_over = False

    def before_batch(self) -> None:
        self._agree(self.WORKING)

    def _agree(self, mine: int) -> int:
        if mine != self.FAILED and self._should_stop is not None and self._should_stop():
            mine = self.STOP
        # Whatever happens in or after the last agreement, another one would meet nobody.
        self._is_over = True
        found = int(self._runtime.control.largest(float(mine)))
        if found == self.STOP:
            raise Dropped
        if found == self.FAILED and mine != self.FAILED:
            raise DataError("the evaluation failed on another process", hint="its message says why")
        self._is_over = found == self.FAILED
        return found

    def __enter__(self) -> _Rounds:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                while self._agree(self.DONE) != self.DONE:
                    self._idle()
            except Exception:
                if not self._is_over:
                    self._agree(self.FAILED)
                raise
        elif isinstance(error, Exception) and not self._is_over:
            self._agree(self.FAILED)


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
    documents: Iterator[Document], token_bytes: np.ndarray, tally: _Tally, runtime: Runtime
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
        scored = ids if document.loss_mask is None else ids[document.loss_mask]
        tally.nats.append(0.0)
        tally.num_bytes.append(int(token_bytes[scored].sum()))
        tally.num_tokens += len(scored)
        yield len(tally.nats) - 1, document


def _windows(documents: Iterable[tuple[int, Document]], *, bos_id: int, seq_len: int) -> Iterator[_Window]:
    for row, document in documents:
        ids = np.asarray(document.ids).astype(np.int64)
        targets = ids if document.loss_mask is None else np.where(document.loss_mask, ids, IGNORE)
        for start in range(0, len(ids), seq_len):
            stop = min(start + seq_len, len(ids))
            inputs = np.empty(stop - start, np.int64)
            inputs[0] = bos_id
            inputs[1:] = ids[start : stop - 1]
            yield _Window(row, inputs, targets[start:stop])


def _blocks(windows: Iterable[_Window], size: int) -> Iterator[list[_Window]]:
    block: list[_Window] = []
    for window in windows:
        block.append(window)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _batches(
    windows: Sequence[_Window], *, seq_len: int, batch_rows: int, bos_id: int, fixed_shape: bool
) -> Iterator[_WindowBatch]:
    """The windows of a block, longest first, in batches of at most batch_rows * seq_len tokens with little padding."""
    ordered = sorted(windows, key=lambda window: -len(window.targets))
    start = 0
    while start < len(ordered):
        longest = len(ordered[start].targets)
        width = seq_len if fixed_shape else min(seq_len, -(-longest // WIDTH_STEP) * WIDTH_STEP)
        height = batch_rows if fixed_shape else batch_rows * seq_len // width
        chosen = ordered[start : start + height]
        shape = (batch_rows if fixed_shape else len(chosen), width)
        inputs_BT = np.full(shape, bos_id, np.int64)
        targets_BT = np.full(shape, IGNORE, np.int64)
        for row, window in enumerate(chosen):
            inputs_BT[row, : len(window.inputs)] = window.inputs
            targets_BT[row, : len(window.targets)] = window.targets
        yield _WindowBatch([window.document for window in chosen], inputs_BT, targets_BT)
        start += len(chosen)


def _result(tally: _Tally, runtime: Runtime, *, elapsed_from_s: float, num_documents_total: int | None) -> BpbResult:
    nats_N = np.asarray(tally.nats, np.float64)
    bytes_N = np.asarray(tally.num_bytes, np.float64)
    num_nonfinite = int((~np.isfinite(nats_N)).sum())
    sums = [nats_N.sum(), bytes_N.sum(), len(nats_N), tally.num_tokens, tally.num_windows, num_nonfinite]
    nats, num_bytes, n, num_tokens, num_windows, num_nonfinite = _sum_over_ranks(sums, runtime)
    if num_bytes == 0:
        raise DataError(
            f"bits per byte need at least one byte of text: {int(n)} documents with {int(num_tokens)} scored tokens have none",
            hint="give validation documents with text in them (special tokens have no bytes)",
        )
    ratio = nats / num_bytes
    # Delta method for a ratio of two sums over n sampled documents (Cochran, Sampling Techniques, 3rd ed., eq. 6.13),
    # without the correction for a finite population: the documents stand for text that was not sampled.
    (squares,) = _sum_over_ranks([((nats_N - ratio * bytes_N) ** 2).sum()], runtime)
    stderr = math.sqrt(n / (n - 1) * squares) / num_bytes / math.log(2) if n > 1 else None
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
    )


def _sum_over_ranks(values: list[float], runtime: Runtime) -> list[float]:
    device = torch.device("cpu") if runtime.device.type == "mps" else runtime.device
    return runtime.sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


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
