"""Continues what a cache holds, one token a row and step, by the fastest step that there is.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch

from firstlight.infer.cache import KVCache
from firstlight.infer.fast import DecodeWeights, attend_to_all, attend_to_prefix, decode_dtype, decode_step, prepare
from firstlight.infer.native.step import native_step, why_not_native
from firstlight.model.gpt import GPT


def cache_dtype(model: GPT, *, batch_rows: int, compiled: bool = False) -> torch.dtype:
    """The dtype that a cache must have for this model's fastest step."""
    device_type = model.lm_head.weight.device.type
    if not compiled and why_not_native(device_type=device_type, dtype=model.compute_dtype) is None:
        return model.compute_dtype
    return decode_dtype(model.compute_dtype, device_type=device_type, batch_rows=batch_rows)


class Decoder:
    """Continues what a cache holds, one token a row and step.

    cache: filled by the prompt, in the dtype of `cache_dtype`.
    compiled: every step is one function of fixed shapes, made by torch.compile. The first one takes many seconds.
    """

    def __init__(self, model: GPT, cache: KVCache, *, compiled: bool = False) -> None:
        assert cache.length, "the prompt comes first"
        self.cache = cache
        self._native = native_step(model) if not compiled and cache.dtype == model.compute_dtype else None
        if self._native is not None:
            self._step = self._native_step
            return
        self._weights = prepare(model, dtype=cache.dtype)
        self._step = self._prefix_step
        if compiled:
            self._compiled = torch.compile(self._static_step, fullgraph=True, dynamic=False)
            self._step = self._compiled_step

    @torch.inference_mode()
    def next_logits(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Logits (B,V) float32 behind ``ids_B``, int64, which are added to the cache. There must be room for them."""
        assert self.cache.length < self.cache.max_len
        before_B = self.cache.last_ids
        assert before_B is not None
        logits_BV = self._step(ids_B, before_B)
        self.cache.advance(1)
        self.cache.remember(ids_B)
        return logits_BV

    def _native_step(self, ids_B: torch.Tensor, before_B: torch.Tensor) -> torch.Tensor:
        assert self._native is not None
        positions_B = torch.full_like(ids_B, self.cache.length)
        return self._native(ids_B, before_B, positions_B, self.cache.k_LBGMK, self.cache.v_LBGMK)

    def _prefix_step(self, ids_B: torch.Tensor, before_B: torch.Tensor) -> torch.Tensor:
        weights, position = self._weights, self.cache.length
        attend = attend_to_prefix(self.cache, position)
        return decode_step(weights, ids_B, before_B, weights.cos_M1K[position], weights.sin_M1K[position], attend)

    def _compiled_step(self, ids_B: torch.Tensor, before_B: torch.Tensor) -> torch.Tensor:
        position_1 = torch.tensor([self.cache.length], device=ids_B.device)
        return self._compiled(self._weights, self.cache.k_LBGMK, self.cache.v_LBGMK, ids_B, before_B, position_1)

    @staticmethod
    def _static_step(
        weights: DecodeWeights,
        k_LBGMK: torch.Tensor,
        v_LBGMK: torch.Tensor,
        ids_B: torch.Tensor,
        before_B: torch.Tensor,
        position_1: torch.Tensor,
    ) -> torch.Tensor:
        attend = attend_to_all(KVCache(k_LBGMK, v_LBGMK), position_1)
        cos_1K, sin_1K = weights.cos_M1K.index_select(0, position_1)[0], weights.sin_M1K.index_select(0, position_1)[0]
        return decode_step(weights, ids_B, before_B, cos_1K, sin_1K, attend)
