"""Keys and values of many contexts of different lengths, a slot each, for the batched engine.

The slots in use are always the first ones, so that a step reads them as views: whoever takes a slot out moves another one
into the gap. The tensors start small and grow by doubling, up to the sizes given; a slot that is free keeps old numbers,
which are finite and which nobody reads without a mask.

Shapes: L layers, B slots, G key/value heads, M positions that there is room for, K head size, T new tokens, S tokens held.
"""

from __future__ import annotations

import torch

from firstlight.model.config import GPTConfig

FIRST_POSITIONS = 64
"""Positions a new cache has room for; it doubles from there."""


class BatchCache:
    """Two tensors (L,B,G,M,K) with room for up to ``max_rows`` contexts of up to ``max_len`` tokens."""

    def __init__(
        self, config: GPTConfig, *, max_rows: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.max_rows = max_rows
        self.max_len = max_len
        shape = (config.n_layer, 1, config.n_kv_head, min(FIRST_POSITIONS, max_len), config.head_dim)
        self.k_LBGMK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBGMK = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.k_LBGMK.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes that both tensors take now."""
        return 2 * self.k_LBGMK.numel() * self.k_LBGMK.element_size()

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Make sure that there is room for so many slots and positions; what is held stays."""
        assert num_rows <= self.max_rows
        assert num_positions <= self.max_len
        rows, positions = self.k_LBGMK.shape[1], self.k_LBGMK.shape[3]
        if num_rows <= rows and num_positions <= positions:
            return
        new_rows = rows if num_rows <= rows else min(self.max_rows, max(num_rows, 2 * rows))
        new_positions = (
            positions if num_positions <= positions else min(self.max_len, max(num_positions, 2 * positions))
        )
        # One after the other, so that no more than one old tensor lives beside a new one.
        self.k_LBGMK = _grown(self.k_LBGMK, new_rows, new_positions)
        self.v_LBGMK = _grown(self.v_LBGMK, new_rows, new_positions)

    def copy_slot(self, source: int, target: int, num_positions: int) -> None:
        """Copy the first ``num_positions`` tokens of one slot to another."""
        for x_LBGMK in (self.k_LBGMK, self.v_LBGMK):
            x_LBGMK[:, target, :, :num_positions] = x_LBGMK[:, source, :, :num_positions]


def _grown(x_LBGMK: torch.Tensor, num_rows: int, num_positions: int) -> torch.Tensor:
    L, B, G, M, K = x_LBGMK.shape
    # Zeros, and not memory as it comes: a weight of zero times NaN is NaN.
    grown = torch.zeros((L, num_rows, G, num_positions, K), dtype=x_LBGMK.dtype, device=x_LBGMK.device)
    grown[:, :B, :, :M] = x_LBGMK
    return grown


class SlotCache:
    """The slots ``first`` to ``first + num - 1`` of a `BatchCache` as a cache that the model fills (`model.gpt.Cache`).

    All of them hold ``length`` tokens before. Keys and values are given back in the dtype that they came in.
    """

    def __init__(
        self, cache: BatchCache, *, first: int, num: int, length: int, last_ids_B: torch.Tensor | None
    ) -> None:
        self._k_LBGMK = cache.k_LBGMK[:, first : first + num]
        self._v_LBGMK = cache.v_LBGMK[:, first : first + num]
        self._length = length
        self._last_ids_B = last_ids_B

    @property
    def length(self) -> int:
        """Tokens that every slot holds."""
        return self._length

    @property
    def last_ids(self) -> torch.Tensor | None:
        """The last id of every slot, (B,) int64; None while they are empty."""
        return self._last_ids_B

    def append(self, layer: int, k_BGTK: torch.Tensor, v_BGTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values; returns all that the layer holds, (B,G,S,K) each."""
        end = self._length + k_BGTK.shape[2]
        assert end <= self._k_LBGMK.shape[3], "reserve comes first"
        self._k_LBGMK[layer, :, :, self._length : end] = k_BGTK
        self._v_LBGMK[layer, :, :, self._length : end] = v_BGTK
        if self._length == 0:
            return k_BGTK, v_BGTK
        keys, values = self._k_LBGMK[layer, :, :, :end], self._v_LBGMK[layer, :, :, :end]
        return keys.to(k_BGTK.dtype), values.to(v_BGTK.dtype)

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has now written."""
        self._length += num_tokens

    def remember(self, last_ids_B: torch.Tensor) -> None:
        """Keep the last id of every slot, (B,) int64."""
        self._last_ids_B = last_ids_B
