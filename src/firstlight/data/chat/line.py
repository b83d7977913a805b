"""One endless line of rows from a mixture, for `data.loader`: any row can be found by its number alone.

Global row g belongs to the component that `mixture.Schedule` says, and is that component's n-th row; a component's n-th row
is known by (seed, component, n). So the rows after a position depend only on how many rows were consumed, never on ranks,
batch sizes, or what was read before. Needs no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import numpy as np

from firstlight.data.chat.mixture import Schedule
from firstlight.data.shuffle import mix_seed

if TYPE_CHECKING:
    from firstlight.data.batch import Position

Loss = Literal["masks", "all"]


class Rows(Protocol):
    """Some rows of L places. targets: as ids, with IGNORE where there is no loss. Both int64, (N, L)."""

    def ids(self, indices: np.ndarray) -> np.ndarray: ...
    def targets(self, indices: np.ndarray) -> np.ndarray: ...
    def documents(self, indices: np.ndarray) -> list[str]: ...


class Walker(Protocol):
    """Finds rows of an endless line by their number. One thread uses it."""

    def at(self, n: int) -> tuple[Rows, int]: ...


class RowSource(Protocol):
    """What a component is made of. num_rows: rows of one pass, None where not known beforehand."""

    @property
    def num_rows(self) -> int | None: ...
    def walker(self, seed: int, stop: threading.Event | None = None) -> Walker: ...


class Read(Protocol):
    """What of `Rows` is asked for where each id is a target."""

    def ids(self, indices: np.ndarray, /) -> np.ndarray: ...
    def documents(self, indices: np.ndarray, /) -> list[str]: ...


R = TypeVar("R", bound=Read)


@dataclass(frozen=True, eq=False)
class EveryId(Generic[R]):
    """Rows in which each id is a target, BOS included, as in pretraining."""

    rows: R

    def ids(self, indices: np.ndarray) -> np.ndarray:
        return self.rows.ids(indices)

    def targets(self, indices: np.ndarray) -> np.ndarray:
        return self.rows.ids(indices)

    def documents(self, indices: np.ndarray) -> list[str]:
        return self.rows.documents(indices)


class MixtureLine:
    """The rows of a mixture from a position on.

    components: (name, rows, weight), the rows `PackedConversations` or `TextRows`, all of the same length. loss: on the
    ``masks`` of conversations (all ids of text carry loss), or on ``all`` ids. position: of it only ``rows_consumed`` decides
    what comes; ``epoch`` says how many passes over the first component are complete (0 where its rows are not counted).
    num_rows: the line ends after this many rows since the start of training; None: never. stop: ends waits.
    """

    def __init__(
        self,
        components: Sequence[tuple[str, RowSource, float]],
        *,
        seed: int,
        loss: Loss,
        position: Position,
        num_rows: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        assert components
        assert loss in ("masks", "all"), loss
        self.position = position
        self._schedule = Schedule([weight for _, _, weight in components], seed=seed)
        self._first_num_rows = components[0][1].num_rows
        self._num_rows = num_rows
        self._loss = loss
        # By its place, not its name: a file that was moved gives the same rows.
        self._walkers = [
            rows.walker(mix_seed(seed, "component", place), stop) for place, (_, rows, _) in enumerate(components)
        ]

    def at_end(self) -> bool:
        return self._num_rows is not None and self.position.rows_consumed >= self._num_rows

    def take(self, num_rows: int) -> Iterator[tuple[Rows, np.ndarray]]:
        """The next rows in order, as (rows, indices into them); fewer only at the line's end. Moves ``position``."""
        begin = self.position.rows_consumed
        end = begin + num_rows if self._num_rows is None else min(begin + num_rows, self._num_rows)
        rows: Rows | None = None
        indices: list[int] = []
        for row in range(begin, end):
            component, n = self._schedule.at(row)
            found, index = self._walkers[component].at(n)
            if rows is not None and found is not rows:
                self._move_to(row)
                yield self._with_loss(rows), np.array(indices, dtype=np.int64)
                indices = []
            rows = found
            indices.append(index)
        if rows is not None:
            self._move_to(end)
            yield self._with_loss(rows), np.array(indices, dtype=np.int64)

    def _with_loss(self, rows: Rows) -> Rows:
        return rows if self._loss == "masks" else EveryId(rows)

    def _move_to(self, row: int) -> None:
        epoch = 0
        if self._first_num_rows is not None:
            epoch = self._schedule.count_before(0, row) // self._first_num_rows
        self.position = replace(self.position, epoch=epoch, shard_index=0, row=0, rows_consumed=row)


def rows_per_epoch(components: Sequence[tuple[str, RowSource, float]], *, seed: int) -> int:
    """Global rows in which the first component is passed over once. Its number of rows must be known."""
    num_rows = components[0][1].num_rows
    assert num_rows is not None, f"the rows of {components[0][0]} are not counted beforehand"
    schedule = Schedule([weight for _, _, weight in components], seed=seed)
    return schedule.row_of(0, num_rows - 1) + 1


def passes(components: Sequence[tuple[str, RowSource, float]], num_rows: int, *, seed: int) -> dict[str, float | None]:
    """How often each component is passed over in the first ``num_rows`` global rows; None where its rows are not counted."""
    schedule = Schedule([weight for _, _, weight in components], seed=seed)
    return {
        name: schedule.count_before(place, num_rows) / rows.num_rows if rows.num_rows else None
        for place, (name, rows, _) in enumerate(components)
    }
