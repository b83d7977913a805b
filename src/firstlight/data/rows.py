"""The rows of an epoch, in an order that the seed alone decides. Says which ids are in which row; needs no torch.

    epoch -> seeded order of shards -> documents of the split -> packing -> seeded order of rows -> ids

Each arrow is a pure function of the store, the split, the row length, and (seed, epoch, shard). Nothing here knows of
ranks, batches or threads. Shapes: N rows, L = T + 1 places in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firstlight.data.packing import PackedRows, pack
from firstlight.data.shuffle import mix_seed, seeded_permutation
from firstlight.data.split import Split, ValSpec, resolve_for, split_documents, split_shards
from firstlight.data.store import StoredShard, TokenStore
from firstlight.errors import DataError

PAD = -1
"""A place of a row that holds no id; equal to ``batch.IGNORE``, so that padded targets carry no loss."""


@dataclass(frozen=True)
class RowRecipe:
    """All that decides the rows, besides the store. val: resolved. row_len: L = T + 1."""

    val: ValSpec
    split: Split
    packing: str
    row_len: int
    seed: int
    bos_id: int

    def shard_order(self, shard_names: list[str], epoch: int) -> list[int]:
        """Indices of the shards of an epoch, in the order in which it uses them."""
        shards = split_shards(self.val, shard_names, self.split)
        order = seeded_permutation(len(shards), mix_seed(self.seed, "shards", epoch))
        return [shards[i] for i in order.tolist()]

    def rows_of(self, shard: StoredShard, epoch: int) -> ShardRows:
        """The shard's rows in an epoch. Documents are packed anew in every epoch, so neighbours in a row change."""
        docs = split_documents(shard, self.val, self.split)
        seed = mix_seed(self.seed, "rows", epoch, shard.index)
        packed = pack(self.packing, shard.lengths[docs], row_len=self.row_len, seed=mix_seed(seed, "pack"))
        order = seeded_permutation(packed.num_rows, mix_seed(seed, "order"))
        return ShardRows(shard=shard, docs=docs, packed=packed, order=order, bos_id=self.bos_id)


@dataclass(frozen=True)
class ShardRows:
    """Rows of one shard in one epoch.

    docs: int64, the shard's documents that were packed. order: int64, (num_rows,): row i here is packed row order[i].
    """

    shard: StoredShard
    docs: np.ndarray
    packed: PackedRows
    order: np.ndarray
    bos_id: int

    @property
    def num_rows(self) -> int:
        return self.packed.num_rows

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Ids of rows, int64, shape (N, L): BOS where a document begins, PAD where the shard's last row has ended.

        Raises DataError naming the shard where an id is not in its vocabulary (the file was damaged after its build).
        """
        packed, all_ids = self.packed, self.shard.all_ids
        begins = self.shard.offsets[self.docs]
        ids_NL = np.full((len(rows), packed.row_len), PAD, dtype=np.int64)
        for out_L, row in zip(ids_NL, self.order[rows].tolist(), strict=True):
            place = 0
            for doc, start, stop, with_bos in packed.row(row):
                if with_bos:
                    out_L[place] = self.bos_id
                    place += 1
                begin = int(begins[doc])
                out_L[place : place + stop - start] = all_ids[begin + start : begin + stop]
                place += stop - start
        largest = int(ids_NL.max(initial=0))
        if largest > max(self.shard.max_id, self.bos_id):
            raise DataError(
                f"{self.shard.path} (from {self.shard.name}) holds id {largest}, its manifest says at most {self.shard.max_id}",
                hint="the file was damaged after it was built: delete its folder to have it built again",
            )
        return ids_NL

    def documents(self, rows: np.ndarray) -> list[str]:
        """Names of the documents with ids in these rows, in order, each once: ``"shard_00003.parquet:117"``."""
        segments = (segment for row in self.order[rows].tolist() for segment in self.packed.row(row))
        docs = [doc for doc, start, stop, _ in segments if start < stop]
        return [self.shard.source_row(int(self.docs[doc])) for doc in dict.fromkeys(docs)]


def epoch_rows(
    store: TokenStore,
    *,
    val_spec: ValSpec | str,
    seq_len: int,
    split: Split = "train",
    packing: str = "bestfit",
    seed: int = 0,
    epoch: int = 0,
) -> int:
    """Rows of T = seq_len targets in one epoch of a split. Waits until all its shards are built.

    (Epochs of ``bestfit`` may differ by a few rows: what is cut, and so how many BOS are added, depends on ties.)
    """
    val = resolve_for(store, val_spec)
    recipe = RowRecipe(val=val, split=split, packing=packing, row_len=seq_len + 1, seed=seed, bos_id=0)
    return sum(recipe.rows_of(store.shard(i), epoch).num_rows for i in split_shards(val, store.shard_names, split))
