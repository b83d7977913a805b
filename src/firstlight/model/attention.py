"""Causal attention: one function, two kernels behind it that give the same result.

Shapes: B rows, T query tokens, S key tokens (those before, and the T themselves), H query heads, G key/value heads,
K head size, R = H/G query heads that share a key/value head, N query tokens of one block, M key tokens it sees.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Kernel = Literal["sdpa", "blocked"]

BLOCK_ROWS = 128
"""Query tokens in a block of the ``blocked`` kernel. Measured with 64, 128 and 256: docs/model.md."""

MAX_BLOCKS = 8
"""Blocks are unrolled in compiled code, so more of them would cost compile time."""

LARGEST_UNSHIFTED_SCORE = 40.0
"""exp(40) times any number of keys is far inside the range of float32 and bfloat16, and so is exp(-40)."""


def attend(
    q_BHTK: torch.Tensor,
    k_BGSK: torch.Tensor,
    v_BGSK: torch.Tensor,
    *,
    num_past: int = 0,
    score_bound: float | None = None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Each query's softmax-weighted mean of the values at its own and earlier positions, (B,H,T,K).

    Scores are ``q . k / sqrt(K)`` (Vaswani et al. 2017, arXiv 1706.03762); query t sees the keys up to num_past + t.

    num_past: keys before the first query (0 in training, the cache's length while decoding): S = num_past + T.
    score_bound: a number that no score exceeds in size, where the caller knows one (normed queries and keys have one):
        then no row's largest score has to be found before exponentials are taken.
    kernel: one kernel, for tests and measurements; None takes the one of `choose_kernel`.
    """
    assert k_BGSK.shape[2] == num_past + q_BHTK.shape[2], "keys must be the past ones and the queries' own"
    if kernel is None:
        kernel = _kernel_for(q_BHTK.device.type, q_BHTK.dtype, q_BHTK.shape[2])
    if kernel == "blocked":
        is_bounded = score_bound is not None and score_bound <= LARGEST_UNSHIFTED_SCORE
        return _attend_blocked(q_BHTK, k_BGSK, v_BGSK, num_past=num_past, is_bounded=is_bounded)
    return _attend_sdpa(q_BHTK, k_BGSK, v_BGSK, num_past=num_past)


def choose_kernel(*, device_type: str, compute_dtype: torch.dtype, seq_len: int) -> tuple[Kernel, str]:
    """The kernel that `attend` takes for rows of ``seq_len`` tokens, and the reason in one sentence, for the log.

    The rule is a measurement (docs/model.md), not a theory: on a CPU, torch's flash kernel runs its small products
    below the rate of a plain batched matmul, and a short row's scores are small enough to be written out.
    """
    kernel = _kernel_for(device_type, compute_dtype, seq_len)
    if device_type != "cpu":
        reason = f"torch has fused kernels on {device_type}"
    elif compute_dtype != torch.bfloat16:
        reason = "in float32 on a CPU the blocked kernel was not faster at every head size"
    elif kernel == "blocked":
        reason = f"blocks of {BLOCK_ROWS} queries beat the CPU's flash kernel in bf16 at {seq_len} tokens"
    elif seq_len == 1:
        reason = "a single query needs no mask"
    else:
        reason = f"rows of {seq_len} tokens are longer than {MAX_BLOCKS} blocks of {BLOCK_ROWS}"
    return kernel, f"attention {kernel}: {reason}"


def _kernel_for(device_type: str, dtype: torch.dtype, num_queries: int) -> Kernel:
    is_short_row = 1 < num_queries <= MAX_BLOCKS * BLOCK_ROWS
    return "blocked" if device_type == "cpu" and dtype == torch.bfloat16 and is_short_row else "sdpa"


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Booleans (num_queries, num_keys), True where a query sees a key; the last query sees the last key.

    >>> causal_mask(2, 3, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def blocked_scores(seq_len: int) -> int:
    """Scores that the blocked kernel computes for one head of one row: those of each block with the keys up to its end.

    >>> blocked_scores(256) / 256**2
    0.75
    """
    ends = [min(seq_len, first + BLOCK_ROWS) for first in range(0, seq_len, BLOCK_ROWS)]
    return sum((end - first) * end for first, end in zip(range(0, seq_len, BLOCK_ROWS), ends, strict=True))


def _attend_sdpa(q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor, *, num_past: int) -> torch.Tensor:
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    is_grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if num_past == 0:
        return functional.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, is_causal=True, enable_gqa=is_grouped)
    # torch's is_causal lines up the first query with the first key, which is wrong behind a cache.
    mask_TS = None if T == 1 else causal_mask(T, S, q_BHTK.device)
    return functional.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_TS, enable_gqa=is_grouped)


def _attend_blocked(
    q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor, *, num_past: int, is_bounded: bool
) -> torch.Tensor:
    """Matmul, softmax, matmul for one block of queries after another, each against the keys that it can see.

    Of the T*T scores, 0.75 are computed for T = 256 and 0.63 for T = 512 (`blocked_scores`); 0.5 are needed.

    is_bounded: scores are small enough for plain exponentials. Each query's mean is then divided by the sum of its
    weights after the second matmul, which leaves one pass over the scores where a softmax has three.
    """
    B, H, T, K = q_BHTK.shape
    G = k_BGSK.shape[1]
    R = H // G
    q_BGRTK = (q_BHTK * K**-0.5).view(B, G, R, T, K) if R > 1 else (q_BHTK * K**-0.5)[:, :, None]
    blocks = []
    for first in range(0, T, BLOCK_ROWS):
        last = min(T, first + BLOCK_ROWS)
        N, M = last - first, num_past + last
        # The R heads that share keys are stacked as more rows of one product, so keys are never repeated.
        q_BGNK = q_BGRTK[:, :, :, first:last].reshape(B, G, R * N, K)
        scores_BGNM = (q_BGNK @ k_BGSK[:, :, :M].transpose(-1, -2)).float()
        mask_NM = causal_mask(N, M, q_BHTK.device).repeat(R, 1)
        if is_bounded:
            weights_BGNM = torch.where(mask_NM, scores_BGNM.exp(), 0.0).to(v_BGSK.dtype)
            # The sum is of the rounded weights, so that they add up to 1.
            sums_BGN1 = weights_BGNM.float().sum(dim=-1, keepdim=True)
            y_BGNK = ((weights_BGNM @ v_BGSK[:, :, :M]).float() / sums_BGN1).to(v_BGSK.dtype)
        else:
            weights_BGNM = torch.where(mask_NM, scores_BGNM, float("-inf")).softmax(dim=-1).to(v_BGSK.dtype)
            y_BGNK = weights_BGNM @ v_BGSK[:, :, :M]
        blocks.append(y_BGNK.view(B, G, R, N, K))
    return torch.cat(blocks, dim=3).reshape(B, H, T, K)
