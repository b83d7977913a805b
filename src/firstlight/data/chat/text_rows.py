"""The text of a base run as a component of a mixture: the rows of a token store, in which every id is a target."""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass

from firstlight.data.chat.line import EveryId
from firstlight.data.rows import RowRecipe, ShardRows
from firstlight.data.split import Split, ValSpec, empty_split, resolve_for
from firstlight.data.store import TokenStore


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of T = seq_len targets of one split of a token store, epoch after epoch.

    num_rows is not known before all shards are built and packed: None.
    """

    store: TokenStore
    val_spec: ValSpec | str
    seq_len: int
    bos_id: int
    split: Split = "train"
    packing: str = "bestfit"

    num_rows = None

    def walker(self, seed: int, stop: threading.Event | None = None) -> TextWalker:
        """The endless line of the rows. stop: ends a wait for a shard that is being built, with WaitCancelled."""
        recipe = RowRecipe(
            val=resolve_for(self.store, self.val_spec), split=self.split, packing=self.packing, row_len=self.seq_len + 1,
            seed=seed, bos_id=self.bos_id,
        )  # fmt: skip
        return TextWalker(self.store, recipe, stop)


class TextWalker:
    """Finds the n-th row of the endless line. To get there it packs the lengths of the shards before it, and reads no ids.

    Numbers of rows that were found once are kept; so is the shard that it is in.
    """

    def __init__(self, store: TokenStore, recipe: RowRecipe, stop: threading.Event | None) -> None:
        self._store = store
        self._recipe = recipe
        self._stop = stop
        self._num_shards = len(recipe.shard_order(store.shard_names, 0))
        self._begins = [0]  # of each shard of each epoch, in the line of all; the last is where the next begins
        self._current: tuple[int, EveryId[ShardRows]] | None = None

    def at(self, n: int) -> tuple[EveryId[ShardRows], int]:
        """The rows that hold the n-th, and its index in them. Raises DataError where the split has no rows."""
        while self._begins[-1] <= n:
            place = len(self._begins) - 1
            if place == self._num_shards and self._begins[-1] == 0:
                raise empty_split(self._recipe.val, self._recipe.split)
            self._begins.append(self._begins[-1] + self._rows(place).rows.num_rows)
        place = bisect.bisect_right(self._begins, n) - 1
        return self._rows(place), n - self._begins[place]

    def _rows(self, place: int) -> EveryId[ShardRows]:
        if self._current is None or self._current[0] != place:
            epoch, index = divmod(place, self._num_shards)
            order = self._recipe.shard_order(self._store.shard_names, epoch)
            shard = self._store.shard(order[index], stop=self._stop)
            self._current = (place, EveryId(self._recipe.rows_of(shard, epoch)))
        return self._current[1]
