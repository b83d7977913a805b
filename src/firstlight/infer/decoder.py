"""Reads a prompt, then continues it one token a row and step, by the fastest step that there is.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from firstlight.infer.cache import KVCache
from firstlight.infer.fast import DecodeWeights, attend_to_all, attend_to_prefix, decode_dtype, decode_step, prepare
from firstlight.infer.native.step import NativeStep
from firstlight.model.gpt import GPT


@torch.no_grad()
def prefill(model: GPT, inputs_BT: torch.Tensor, cache: KVCache, *, chunk: int) -> torch.Tensor:
    """Put the tokens into the cache, ``chunk`` at a time, and return the logits behind the last one, (B,V) float32."""
    assert inputs_BT.shape[1] > 0
    last_B1D = torch.empty(0)
    for piece_BT in inputs_BT.split(chunk, dim=1):
        last_B1D = model.hidden(piece_BT, cache)[:, -1:]
    return model.logits(last_B1D)[:, -1]


def read_natively(native: NativeStep, prompt_ids: Sequence[int], cache: KVCache) -> torch.Tensor:
    """Put a prompt into an empty cache of one row; logits behind its last token, (1,V) float32."""
    logits_1V = native.read([prompt_ids], cache.k_LBGMK, cache.v_LBGMK)
    cache.advance(len(prompt_ids))
    cache.remember(torch.tensor(prompt_ids[-1:]))
    return logits_1V


def step_dtype(model: GPT, native: NativeStep | None, *, batch_rows: int) -> torch.dtype:
    """The dtype that a cache has while it is continued."""
    if native is not None:
        return native.dtype
    return decode_dtype(model.compute_dtype, device_type=model.lm_head.weight.device.type, batch_rows=batch_rows)


class Decoder:
    """Continues what a cache holds, one token a row and step.

    cache: filled by the prompt; its dtype is that of the products (`step_dtype`).
    native: the step for the model's weights; without it torch's operations are used.
    compiled: without it, every step is one function of fixed shapes, made by torch.compile. The first one takes many seconds.
    """

    def __init__(self, model: GPT, cache: KVCache, *, native: NativeStep | None = None, compiled: bool = False) -> None:
        assert cache.length, "the prompt comes first"
        self.cache = cache
        self._native = native
        if native is not None:
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
        return self._native.next_logits(ids_B, before_B, positions_B, self.cache.k_LBGMK, self.cache.v_LBGMK)

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
