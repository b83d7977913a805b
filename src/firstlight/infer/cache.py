"""The key/value cache: what attention needs of the tokens before, so that a new token costs one token's work.

Shapes: L layers, B rows, G key/value heads, M positions that there is room for, K head size, T new tokens, S tokens
held.
"""

from __future__ import annotations

import torch

from firstlight.errors import ConfigError
from firstlight.model.config import GPTConfig


class KVCache:
    """Keys and values of all layers in two tensors of fixed size, (L,B,G,M,K) each; it never grows or moves.

    A forward pass appends to every layer and then advances once, so all layers always hold the same ``length`` tokens.
    """

    def __init__(self, k_LBGMK: torch.Tensor, v_LBGMK: torch.Tensor, *, length: int = 0) -> None:
        self.k_LBGMK = k_LBGMK
        self.v_LBGMK = v_LBGMK
        self._length = length
        self._last_ids_B: torch.Tensor | None = None

    @classmethod
    def empty(
        cls, config: GPTConfig, *, batch_rows: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> KVCache:
        """A cache with room for ``max_len`` tokens of ``batch_rows`` contexts.

        Raises ConfigError where the model has no positions for that many.
        """
        if not 0 < max_len <= config.max_seq_len:
            raise ConfigError(
                f"a cache of {max_len} tokens does not fit the model's max_seq_len {config.max_seq_len}",
                hint=f"1 to {config.max_seq_len} tokens would",
            )
        shape = (config.n_layer, batch_rows, config.n_kv_head, max_len, config.head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return self._length

    @property
    def last_ids(self) -> torch.Tensor | None:
        """The last id of every row, (B,) int64; None while the cache is empty."""
        return self._last_ids_B

    @property
    def max_len(self) -> int:
        """Tokens that there is room for."""
        return self.k_LBGMK.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.k_LBGMK.dtype

    def append(self, layer: int, k_BGTK: torch.Tensor, v_BGTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens' keys and values of one layer behind the ``length`` tokens there are.

        Returns all that the layer now holds, (B,G,S,K) each: views, not copies.
        Raises ConfigError where they do not fit; nothing has been written then.
        """
        end = self._length + k_BGTK.shape[2]
        if end > self.max_len:
            raise ConfigError(
                f"the cache holds {self._length} of {self.max_len} tokens and {k_BGTK.shape[2]} more do not fit",
                hint="give fewer tokens, or make a larger cache",
            )
        if k_BGTK.shape[0] != self.k_LBGMK.shape[1]:
            raise ConfigError(
                f"the cache was made for {self.k_LBGMK.shape[1]} rows and was given {k_BGTK.shape[0]}",
                hint="use one cache for each batch, or repeat_rows",
            )
        self.k_LBGMK[layer, :, :, self._length : end] = k_BGTK
        self.v_LBGMK[layer, :, :, self._length : end] = v_BGTK
        return self.k_LBGMK[layer, :, :, :end], self.v_LBGMK[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has now written."""
        assert self._length + num_tokens <= self.max_len
        self._length += num_tokens

    def remember(self, last_ids_B: torch.Tensor) -> None:
        """Keep the last id of every row, (B,) int64."""
        self._last_ids_B = last_ids_B

    def repeat_rows(self, num_rows: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """A new cache in which each of ``num_rows`` contexts starts as this cache's only one (a shared prompt).

        dtype: of the new cache; None is this one's.
        """
        assert self.k_LBGMK.shape[1] == 1, "only a cache of one row can be repeated"
        k_LBGMK, v_LBGMK = (
            x.to(dtype or self.dtype).repeat(1, num_rows, 1, 1, 1) for x in (self.k_LBGMK, self.v_LBGMK)
        )
        cache = KVCache(k_LBGMK, v_LBGMK, length=self._length)
        if self._last_ids_B is not None:
            cache.remember(self._last_ids_B.repeat(num_rows))
        return cache
