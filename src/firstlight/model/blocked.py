"""Attention written as plain matrix products over blocks of queries: the kernel for CPUs.

For each block of queries against the keys it can see, with s = 1 / sqrt(K):

    e = exp(s q k^T - m), 0 where masked        z = sum of e over keys        y = (e v) / z
    dv += e^T (dy / z)     de = (dy / z) v^T     d = sum of dy * y     g = s e (de - d / z)     dq = g k     dk += g^T q

The backward pass is spelled out because autograd's own is slower: it adds gradients of slices in tensors of full length
and takes the exponentials again. Products are in the tensors' dtype, everything between them in float32.

m is the row's largest score, or 0 where the caller knows that no score is large; then e needs one pass over the scores.

Shapes: B rows, T queries, S keys, H query heads, G key/value heads, K head size, R = H/G, N queries of a block stacked for
the R heads that share keys (so that keys are never repeated), M keys that a block sees.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch

BLOCK_ROWS = 128
"""Query tokens in a block. Measured with 64, 128 and 256: docs/model.md."""


class QueryBlock(NamedTuple):
    """Queries ``first`` to ``last`` (not included) and the first key that any of them sees."""

    first: int
    last: int
    first_key: int


def query_blocks(num_queries: int, *, num_past: int, window: int | None) -> list[QueryBlock]:
    """The blocks of ``num_queries`` queries behind ``num_past`` keys."""
    blocks = []
    for first in range(0, num_queries, BLOCK_ROWS):
        first_key = 0 if window is None else max(0, num_past + first + 1 - window)
        blocks.append(QueryBlock(first, min(num_queries, first + BLOCK_ROWS), first_key))
    return blocks


def blocked_scores(seq_len: int, window: int | None = None) -> int:
    """Scores that the kernel computes for one head of one row: those of each block with the keys from its first query's
    first to its last query's own.

    >>> blocked_scores(256) / 256**2, blocked_scores(512, window=128) / 512**2
    (0.75, 0.43603515625)
    """
    blocks = query_blocks(seq_len, num_past=0, window=window)
    return sum((last - first) * (last - first_key) for first, last, first_key in blocks)


def causal_mask(num_queries: int, num_keys: int, device: torch.device, *, window: int | None = None) -> torch.Tensor:
    """Booleans (num_queries, num_keys), True where a query sees a key; the last query sees the last key.

    >>> causal_mask(2, 3, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    >>> causal_mask(2, 3, torch.device("cpu"), window=2).int().tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    own = num_keys - num_queries
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(own)
    return mask if window is None else mask.triu(own - window + 1)


class BlockedAttention(torch.autograd.Function):
    """``apply(q_BHTK, k_BGSK, v_BGSK, num_past, window, is_bounded) -> y_BHTK``; see `firstlight.model.attention.attend`."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHTK: torch.Tensor,
        k_BGSK: torch.Tensor,
        v_BGSK: torch.Tensor,
        num_past: int,
        window: int | None,
        is_bounded: bool,
    ) -> torch.Tensor:
        B, H, T, K = q_BHTK.shape
        G = k_BGSK.shape[1]
        R = H // G
        weights, inverse_sums, outputs = [], [], []
        for first, last, first_key in query_blocks(T, num_past=num_past, window=window):
            keys = slice(first_key, num_past + last)
            q_BGNK = _stacked(q_BHTK, G, first, last)
            scores_BGNM = (q_BGNK @ k_BGSK[:, :, keys].transpose(-1, -2)).float() * K**-0.5
            mask_NM = causal_mask(last - first, num_past + last - first_key, q_BHTK.device, window=window)
            mask_NM = mask_NM.repeat(R, 1)
            if not is_bounded:
                scores_BGNM = torch.where(mask_NM, scores_BGNM, float("-inf"))
                scores_BGNM = scores_BGNM - scores_BGNM.amax(dim=-1, keepdim=True)
            e_BGNM = torch.where(mask_NM, scores_BGNM.exp(), 0.0).to(v_BGSK.dtype)
            # The sum is of the rounded weights, so that what multiplies the values adds up to 1.
            inverse_BGN1 = 1 / e_BGNM.float().sum(dim=-1, keepdim=True)
            y_BGNK = ((e_BGNM @ v_BGSK[:, :, keys]).float() * inverse_BGN1).to(v_BGSK.dtype)
            outputs.append(y_BGNK.view(B, G, R, last - first, K))
            weights.append(e_BGNM)
            inverse_sums.append(inverse_BGN1)
        y_BHTK = torch.cat(outputs, dim=3).reshape(B, H, T, K)
        ctx.save_for_backward(q_BHTK, k_BGSK, v_BGSK, y_BHTK, *weights, *inverse_sums)
        ctx.num_past, ctx.window = num_past, window
        return y_BHTK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy_BHTK,) = grad_outputs
        q_BHTK, k_BGSK, v_BGSK, y_BHTK, *rest = ctx.saved_tensors
        weights, inverse_sums = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        B, H, T, K = q_BHTK.shape
        G, S = k_BGSK.shape[1:3]
        d_BHT1 = (dy_BHTK.float() * y_BHTK.float()).sum(dim=-1, keepdim=True)
        blocks = query_blocks(T, num_past=ctx.num_past, window=ctx.window)
        dq, dk, dv = [], [], []
        for (first, last, first_key), e_BGNM, inverse_BGN1 in zip(blocks, weights, inverse_sums, strict=True):
            keys = slice(first_key, ctx.num_past + last)
            q_BGNK = _stacked(q_BHTK, G, first, last)
            dyz_BGNK = (_stacked(dy_BHTK, G, first, last).float() * inverse_BGN1).to(v_BGSK.dtype)
            dv.append(e_BGNM.transpose(-1, -2) @ dyz_BGNK)
            de_BGNM = dyz_BGNK @ v_BGSK[:, :, keys].transpose(-1, -2)
            dz_BGN1 = _stacked(d_BHT1, G, first, last) * inverse_BGN1
            g_BGNM = (e_BGNM.float() * (de_BGNM.float() - dz_BGN1) * K**-0.5).to(q_BHTK.dtype)
            dq.append((g_BGNM @ k_BGSK[:, :, keys]).view(B, G, H // G, last - first, K))
            dk.append(g_BGNM.transpose(-1, -2) @ q_BGNK)
        dq_BHTK = torch.cat(dq, dim=3).reshape(B, H, T, K)
        spans = [(block.first_key, ctx.num_past + block.last) for block in blocks]
        return dq_BHTK, _added(dk, spans, S), _added(dv, spans, S), None, None, None


def _stacked(x_BHTK: torch.Tensor, G: int, first: int, last: int) -> torch.Tensor:
    """Tokens of one block, (B,G,R*n,K): the R heads that share keys one below the other."""
    B, H, T, K = x_BHTK.shape
    return x_BHTK.view(B, G, H // G, T, K)[:, :, :, first:last].reshape(B, G, -1, K)


def _added(parts: list[torch.Tensor], spans: list[tuple[int, int]], length: int) -> torch.Tensor:
    """Sum of tensors (B,G,M,K) that each stand for a span of the keys, (B,G,length,K). Added in float32, a piece at a time."""
    ends = sorted({0, length, *(end for span in spans for end in span)})
    pieces = []
    for first, last in pairwise(ends):
        piece = None
        for part, (begin, end) in zip(parts, spans, strict=True):
            if begin <= first and last <= end:
                here = part[:, :, first - begin : last - begin].float()
                piece = here if piece is None else piece + here
        if piece is None:
            B, G, _, K = parts[0].shape
            piece = parts[0].new_zeros(B, G, last - first, K, dtype=torch.float32)
        pieces.append(piece.to(parts[0].dtype))
    return torch.cat(pieces, dim=2)
