"""Batches in an order that neither ranks, nor batch sizes, nor threads can change.

All rows of all epochs form one endless line (``rows.py``). A micro-batch of B rows on each of W ranks takes the next
B * W of them; rank r takes every W-th, beginning with the r-th. So a step of R rows uses global rows [s * R, (s + 1) * R)
however they are dealt out, and a batch's ``position`` is all that is needed to go on after it.

Shapes: B rows of this rank's batch, T tokens in a row, L = T + 1 places in a row.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from firstlight.data.batch import Batch, Position
from firstlight.data.packing import PACKINGS
from firstlight.data.rows import PAD, RowRecipe, ShardRows
from firstlight.data.split import Split, ValSpec, empty_split, resolve_for
from firstlight.data.store import TokenStore, WaitCancelled
from firstlight.errors import ConfigError, DataError


class RowLine(Protocol):
    """An endless line of rows of L places, walked from a position. One thread uses it.

    take: the next rows as (rows, indices into them), where ``rows.ids(indices)`` is int64 (N, L) with PAD and
    ``rows.documents(indices)`` names what is in them; fewer rows only where the data ends. It moves ``position``.
    """

    position: Position

    def at_end(self) -> bool: ...
    def take(self, num_rows: int) -> Iterator[tuple[Any, np.ndarray]]: ...


@runtime_checkable
class MaskedRows(Protocol):
    """Rows in which not every id is a target: ``targets`` is as ``ids``, with IGNORE where there is no loss."""

    def targets(self, rows: np.ndarray) -> np.ndarray: ...


OpenLine = Callable[[Position, threading.Event], RowLine]
"""The line from a position on; the event calls off whatever it waits for."""


class _RowReader:
    """Walks the endless line of rows from a position. Keeps the shard that it is in; one thread uses it."""

    def __init__(
        self, store: TokenStore, recipe: RowRecipe, position: Position, *, max_epochs: int | None, stop: threading.Event
    ) -> None:
        self._store = store
        self._recipe = recipe
        self._max_epochs = max_epochs
        self._stop = stop
        self._current: tuple[int, int, ShardRows] | None = None  # epoch, index in its order, rows
        self._order: tuple[int, list[int]] | None = None  # epoch, shards
        self.position = position

    def _shards(self, epoch: int) -> list[int]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._recipe.shard_order(self._store.shard_names, epoch))
        return self._order[1]

    def _rows(self, epoch: int, shard_index: int) -> ShardRows:
        if self._current is None or self._current[:2] != (epoch, shard_index):
            shard = self._store.shard(self._shards(epoch)[shard_index], stop=self._stop)
            self._current = (epoch, shard_index, self._recipe.rows_of(shard, epoch))
        return self._current[2]

    def at_end(self) -> bool:
        return self._max_epochs is not None and self.position.epoch >= self._max_epochs

    def take(self, num_rows: int) -> Iterator[tuple[ShardRows, np.ndarray]]:
        """The next ``num_rows`` rows as (rows of a shard, indices into them); fewer only at the end of the last epoch.

        Moves ``position`` past them; past the end of a shard or epoch it points to the start of the next.
        Raises DataError where the split has no rows, or the position lies outside the data.
        """
        empty_in_a_row = 0
        while num_rows > 0 and not self.at_end():
            position = self.position
            num_shards = len(self._shards(position.epoch))
            if position.shard_index >= num_shards:
                raise self._outside(position, f"an epoch has {num_shards} shards")
            rows = self._rows(position.epoch, position.shard_index)
            if position.row > rows.num_rows:
                raise self._outside(position, f"the shard {rows.shard.name} has {rows.num_rows} rows")
            empty_in_a_row = empty_in_a_row + 1 if rows.num_rows == 0 else 0
            if empty_in_a_row >= num_shards:
                raise empty_split(self._recipe.val, self._recipe.split)
            taken = min(num_rows, rows.num_rows - position.row)
            self.position = self._after(position, taken, rows.num_rows, num_shards)
            num_rows -= taken
            if taken:
                yield rows, np.arange(position.row, position.row + taken)

    @staticmethod
    def _after(position: Position, taken: int, rows_in_shard: int, num_shards: int) -> Position:
        epoch, shard_index, row = position.epoch, position.shard_index, position.row + taken
        if row == rows_in_shard:
            shard_index, row = shard_index + 1, 0
        if shard_index == num_shards:
            epoch, shard_index = epoch + 1, 0
        return Position(epoch, shard_index, row, position.rows_consumed + taken)

    @staticmethod
    def _outside(position: Position, why: str) -> DataError:
        return DataError(
            f"the position to go on from (epoch {position.epoch}, shard {position.shard_index}, row {position.row}) "
            f"is not in this data: {why}",
            hint="it was saved with other data, another --val, --max-seq-len or --seed: resume with those of the run",
        )


class LineLoader(Iterator[Batch]):
    """Batches of one rank from any line of rows, made by a thread ``prefetch`` batches ahead (0: on demand).

    open_line: the line from a position on. bos_id: what the model reads in empty places. seq_len: T.
    device_batch_size: rows B of a batch. position: where to begin; a batch's ``position`` continues after it, for any world
    size and batch size.

    Where the line ends inside a batch, the rest of it is rows of BOS without targets, so that every rank has a batch of
    every micro-step. An error of the thread is raised by ``next``.
    """

    def __init__(
        self,
        open_line: OpenLine,
        *,
        bos_id: int,
        seq_len: int,
        device_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        position: Position | None = None,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
    ) -> None:
        for flag, value in (("--max-seq-len", seq_len), ("--device-batch-size", device_batch_size)):
            if value < 1:
                raise ConfigError(f"{flag} {value} is too small", hint="the smallest is 1")
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self._open_line = open_line
        self._bos_id, self._row_len = bos_id, seq_len + 1
        self._batch_rows = device_batch_size
        self._rank, self._world_size = rank, world_size
        self._device = torch.device(device)
        self._stop = threading.Event()
        self._line = open_line(position or Position(), self._stop)
        self._error: Exception | None = None
        self._queue: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=max(1, prefetch))
        self._thread: threading.Thread | None = None
        if prefetch > 0:
            self._thread = threading.Thread(target=self._run_ahead, name="firstlight-loader", daemon=True)
            self._thread.start()

    def __iter__(self) -> LineLoader:
        return self

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise StopIteration
        if self._thread is None:
            made = self._made_or_error()
        else:
            made = self._queue.get()
        if isinstance(made, Exception):
            self._error = made
            raise made
        if made is None:
            self._error = StopIteration()
            raise StopIteration
        return self._on_device(made)

    def __enter__(self) -> LineLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and drop what it made ahead. Safe to call twice."""
        self._stop.set()
        if self._thread is None:
            return
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def documents_of(self, position_before: Position, num_rows: int) -> list[str]:
        """Names of the documents in the ``num_rows`` global rows (all ranks) after a position, each once, in order."""
        line = self._open_line(position_before, self._stop)
        names = [name for rows, indices in line.take(num_rows) for name in rows.documents(indices)]
        return list(dict.fromkeys(names))

    def _run_ahead(self) -> None:
        while not self._stop.is_set():
            made = self._made_or_error()
            # A full queue is waited for in short turns, so that close() is never kept waiting.
            while not self._stop.is_set():
                try:
                    self._queue.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if not isinstance(made, Batch):
                return

    def _made_or_error(self) -> Batch | Exception | None:
        try:
            return self._make()
        except WaitCancelled:
            return None
        except Exception as error:
            return error

    def _make(self) -> Batch | None:
        """The next batch on the CPU, or None at the end of the last epoch."""
        if self._line.at_end():
            return None
        ids_BL = np.full((self._batch_rows, self._row_len), PAD, dtype=np.int64)
        targets_BL = ids_BL
        seen = filled = 0  # rows of the micro-batch over all ranks; of this rank
        for rows, indices in self._line.take(self._batch_rows * self._world_size):
            mine = indices[(self._rank - seen) % self._world_size :: self._world_size]
            here = slice(filled, filled + len(mine))
            ids_BL[here] = rows.ids(mine)
            if isinstance(rows, MaskedRows):
                if targets_BL is ids_BL:
                    targets_BL = ids_BL.copy()
                targets_BL[here] = rows.targets(mine)
            elif targets_BL is not ids_BL:
                targets_BL[here] = ids_BL[here]
            seen += len(indices)
            filled += len(mine)
        if seen == 0:
            return None
        # Contiguous copies: a slice of ids_BL would not survive .view() (its rows are L apart). PAD is IGNORE already.
        targets_BT = targets_BL[:, 1:].copy()
        inputs_BT = ids_BL[:, :-1].copy()
        inputs_BT[inputs_BT == PAD] = self._bos_id
        batch = Batch(torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT), self._line.position)
        if self._device.type == "cuda":
            batch = Batch(batch.inputs_BT.pin_memory(), batch.targets_BT.pin_memory(), batch.position)
        return batch

    def _on_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        non_blocking = self._device.type == "cuda"
        return Batch(
            batch.inputs_BT.to(self._device, non_blocking=non_blocking),
            batch.targets_BT.to(self._device, non_blocking=non_blocking),
            batch.position,
        )


class Loader(LineLoader):
    """Endless (or ``max_epochs`` long) batches of a token store's documents; see `LineLoader`.

    tokenizer_bos_id: the id put in front of each document. val_spec: ``last``, ``hash:FRACTION``, a shard's name.
    split: ``train`` or ``val``. packing: ``bestfit`` or ``stream``.
    vocab_size: ids that the model has; by default those of the store's tokenizer.

    Raises ConfigError or DataError at once for what can be known at once.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        tokenizer_bos_id: int,
        val_spec: ValSpec | str,
        split: Split = "train",
        packing: str = "bestfit",
        seq_len: int,
        device_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        position: Position | None = None,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
        max_epochs: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if packing not in PACKINGS:
            raise ConfigError(f"the packing {packing!r} is not known", hint=f"one of {', '.join(PACKINGS)}")
        self._check_ids(store, tokenizer_bos_id, store.vocab_size if vocab_size is None else vocab_size)
        self._recipe = recipe = RowRecipe(
            val=resolve_for(store, val_spec), split=split, packing=packing, row_len=seq_len + 1, seed=seed,
            bos_id=tokenizer_bos_id,
        )  # fmt: skip

        def open_line(position: Position, stop: threading.Event) -> _RowReader:
            return _RowReader(store, recipe, position, max_epochs=max_epochs, stop=stop)

        super().__init__(
            open_line, bos_id=tokenizer_bos_id, seq_len=seq_len, device_batch_size=device_batch_size, rank=rank,
            world_size=world_size, position=position, device=device, prefetch=prefetch,
        )  # fmt: skip

    @staticmethod
    def _check_ids(store: TokenStore, bos_id: int, vocab_size: int) -> None:
        if not 0 <= bos_id < vocab_size:
            raise DataError(f"BOS has id {bos_id}, but the model has {vocab_size} ids")
        for index, name in enumerate(store.shard_names):
            manifest = store.shard_manifest(index)
            if manifest is not None and manifest["max_id"] >= vocab_size:
                raise DataError(
                    f"{name} holds id {manifest['max_id']}, but the model has {vocab_size} ids",
                    hint="the data was tokenised with another tokenizer than the model's",
                )
        # Shards still to be built are held to the store's vocabulary when they are opened.
        if store.vocab_size > vocab_size:
            raise DataError(
                f"the data was tokenised with {store.vocab_size} ids, but the model has {vocab_size}",
                hint="use the tokenizer of the model, or a model with a larger --vocab-size",
            )
