"""Causal attention: four kernels that give the same result, and the rule that chooses one.

Shapes: B rows, T query tokens, S key tokens (those before, and the T themselves), H query heads, G key/value heads,
K head size, R = H/G query heads that share a key/value head, N query tokens of one block, M key tokens it sees.

With a window of W tokens a query sees its own key and the W - 1 before it (Beltagy et al. 2020, arXiv 2004.05150).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from firstlight.model.blocked import BLOCK_ROWS, BlockedAttention, causal_mask
from firstlight.model.native.attention import attend_natively
from firstlight.model.native.layer import why_not_native_layers
from firstlight.model.rope import normed_and_turned

Kernel = Literal["native", "sdpa", "blocked", "flex"]

FLEX_BLOCK = 128
"""Queries and keys in a block of the ``flex`` kernel: torch's own choice, for which its tiles are tuned."""

MAX_BLOCKS = 8
"""Blocks are unrolled in compiled code, so more of them would cost compile time."""

LARGEST_UNSHIFTED_SCORE = 40.0
"""exp(40) times any number of keys is far inside the range of float32 and bfloat16, and so is exp(-40)."""


def attend_to_own(
    q_BTHK: torch.Tensor,
    k_BTGK: torch.Tensor,
    v_BTGK: torch.Tensor,
    cos_TJ: torch.Tensor,
    sin_TJ: torch.Tensor,
    *,
    gain: float,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Attention of whole rows to themselves: heads as the projections give them are normed, turned and multiplied by
    ``gain`` (`firstlight.model.rope.normed_and_turned`), then `attend`. (B,T,H,K).

    kernel: see `attend`; ``native`` does all of this in one walk. Code that torch.compile reads cannot look for it, so there
        it must be named.
    """
    if kernel is None:
        is_compiled = torch.compiler.is_compiling()
        kernel = _kernel_for(
            q_BTHK.device.type, q_BTHK.dtype, q_BTHK.shape[1], None, is_compiled, may_be_native=not is_compiled
        )
    if kernel == "native":
        return attend_natively(q_BTHK, k_BTGK, v_BTGK, cos_TJ, sin_TJ, gain=gain)
    q_BHTK = normed_and_turned(q_BTHK, cos_TJ, sin_TJ, gain=gain)
    k_BGTK = normed_and_turned(k_BTGK, cos_TJ, sin_TJ, gain=gain)
    bound = score_bound(gain, head_dim=q_BTHK.shape[-1])
    return attend(q_BHTK, k_BGTK, v_BTGK.transpose(1, 2), score_bound=bound, kernel=kernel).transpose(1, 2)


def score_bound(gain: float, *, head_dim: int) -> float:
    """What no score of normed heads exceeds: they have length gain * sqrt(K), and rounding may add a little."""
    return 1.02 * gain**2 * head_dim**0.5


def attend(
    q_BHTK: torch.Tensor,
    k_BGSK: torch.Tensor,
    v_BGSK: torch.Tensor,
    *,
    num_past: int = 0,
    window: int | None = None,
    score_bound: float | None = None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Each query's softmax-weighted mean of the values at its own and earlier positions, (B,H,T,K).

    Scores are ``q . k / sqrt(K)`` (Vaswani et al. 2017, arXiv 1706.03762); query t sees the keys up to num_past + t.

    num_past: keys before the first query (0 in training, the cache's length while decoding): S = num_past + T.
    window: keys that a query sees, its own included; None is all of them.
    score_bound: a number that no score exceeds in size, where the caller knows one (normed queries and keys have one):
        then no row's largest score has to be found before exponentials are taken.
    kernel: one kernel, for tests and measurements; None takes the one of `choose_kernel`, or where that is ``native``,
        which turns heads itself, the next best.
    """
    assert k_BGSK.shape[2] == num_past + q_BHTK.shape[2], "keys must be the past ones and the queries' own"
    if window is not None:
        assert window >= 1, "a query sees at least its own key"
        # Past keys that no query sees are left out; for a single query that is all that a window does.
        unseen = max(0, num_past + 1 - window)
        k_BGSK, v_BGSK, num_past = k_BGSK[:, :, unseen:], v_BGSK[:, :, unseen:], num_past - unseen
        window = window if window < k_BGSK.shape[2] else None
    if kernel is None:
        is_compiled = torch.compiler.is_compiling()
        kernel = _kernel_for(
            q_BHTK.device.type, q_BHTK.dtype, q_BHTK.shape[2], window, is_compiled, may_be_native=False
        )
    assert kernel != "native", "the native kernel turns the heads itself: see attend_to_own"
    if kernel == "blocked":
        is_bounded = score_bound is not None and score_bound <= LARGEST_UNSHIFTED_SCORE
        return _attend_blocked(q_BHTK, k_BGSK, v_BGSK, num_past=num_past, window=window, is_bounded=is_bounded)
    if kernel == "flex":
        return _attend_flex(q_BHTK, k_BGSK, v_BGSK, num_past=num_past, window=window)
    return _attend_sdpa(q_BHTK, k_BGSK, v_BGSK, num_past=num_past, window=window)


def choose_kernel(
    *,
    device_type: str,
    compute_dtype: torch.dtype,
    seq_len: int,
    window: int | None = None,
    is_compiled: bool = True,
) -> tuple[Kernel, str]:
    """The kernel for rows of ``seq_len`` tokens that attend to themselves, and the reason in one sentence, for the log.

    is_compiled: whether attention is called in compiled code. May compile the native kernel, once on a machine.

    The rule is a measurement (docs/model.md), not a theory: on a CPU, torch's flash kernel runs its small products
    below the rate of a plain batched matmul, and a short row's scores are small enough to be written out.
    """
    if window is not None and window >= seq_len:
        window = None
    kernel = _kernel_for(device_type, compute_dtype, seq_len, window, is_compiled, may_be_native=True)
    if kernel == "flex":
        reason = f"compiled on {device_type} it skips the blocks of keys outside the window of {window}"
    elif window is not None and kernel == "blocked":
        reason = f"blocks of {BLOCK_ROWS} queries multiply only the keys in their windows of {window}"
    elif window is not None:
        reason = f"the window of {window} is a mask here, which hides keys and saves no work"
    elif device_type != "cpu":
        reason = f"torch has fused kernels on {device_type}"
    elif seq_len == 1:
        reason = "a single query needs no mask"
    elif kernel == "native":
        reason = "blocks of scores stay in a core's cache, and norm and rotation are part of the walk"
    elif compute_dtype == torch.float32:
        reason = f"torch's own, slower than the native kernel, which is not to be had: {why_not_native_layers()}"
    elif compute_dtype != torch.bfloat16:
        reason = f"the other kernels of a CPU are for float32 and bfloat16, not {compute_dtype}"
    elif kernel == "blocked":
        reason = f"blocks of {BLOCK_ROWS} queries beat the CPU's flash kernel in bf16 at {seq_len} tokens"
    else:
        reason = f"rows of {seq_len} tokens are longer than {MAX_BLOCKS} blocks of {BLOCK_ROWS}"
    return kernel, f"attention {kernel}: {reason}"


def _kernel_for(
    device_type: str,
    dtype: torch.dtype,
    num_queries: int,
    window: int | None,
    is_compiled: bool,
    *,
    may_be_native: bool,
) -> Kernel:
    """window: None where it hides nothing. may_be_native: whether to look for the native kernel."""
    if num_queries == 1:
        return "sdpa"
    if device_type == "cpu":
        if dtype == torch.float32 and window is None and may_be_native and why_not_native_layers() is None:
            return "native"
        is_short_row = num_queries <= MAX_BLOCKS * BLOCK_ROWS
        return "blocked" if is_short_row and (window is not None or dtype == torch.bfloat16) else "sdpa"
    # Not compiled, flex writes out all scores.
    return "flex" if device_type == "cuda" and window is not None and is_compiled else "sdpa"


def _attend_sdpa(
    q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor, *, num_past: int, window: int | None
) -> torch.Tensor:
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    is_grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if num_past == 0 and window is None:
        return functional.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, is_causal=True, enable_gqa=is_grouped)
    # torch's is_causal lines up the first query with the first key, which is wrong behind a cache.
    mask_TS = None if T == 1 else causal_mask(T, S, q_BHTK.device, window=window)
    return functional.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_TS, enable_gqa=is_grouped)


def _attend_flex(
    q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor, *, num_past: int, window: int | None
) -> torch.Tensor:
    """FlexAttention (Dong et al. 2024, arXiv 2412.05496) over the blocks of keys that some query of a block sees.

    In compiled code this is one fused kernel, forward and backward; elsewhere torch writes out all scores.
    """
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    mask = window_block_mask(T, S, window=window, device=q_BHTK.device)
    is_grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    y_BHTK = flex_attention(q_BHTK, k_BGSK, v_BGSK, block_mask=mask, enable_gqa=is_grouped)
    assert isinstance(y_BHTK, torch.Tensor)
    return y_BHTK


def window_block_mask(num_queries: int, num_keys: int, *, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of queries reads, and which of those are seen whole (they need no mask).

    Computed from the blocks' ends instead of from a (T,S) mask, so that it costs next to nothing where it is made anew in
    every layer; what `torch.nn.attention.flex_attention.create_block_mask` gives. The last query sees the last key.
    """
    num_past, size = num_keys - num_queries, FLEX_BLOCK
    width = num_keys if window is None else window

    def sees(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q + num_past) & (k > q + num_past - width)

    first_q = torch.arange(0, num_queries, size, device=device)
    last_q = (first_q + size - 1).clamp_max(num_queries - 1)
    first_k = torch.arange(0, num_keys, size, device=device)
    last_k = first_k + size - 1
    some = (first_k <= (last_q + num_past)[:, None]) & (last_k > (first_q + num_past - width)[:, None])
    # A block that reaches past the last key or query is never whole: the mask also keeps what is not there out.
    whole = (last_k <= (first_q + num_past)[:, None]) & (first_k > (last_q + num_past - width)[:, None])
    whole = whole & (last_k < num_keys) & (first_q + size <= num_queries)[:, None]
    parts = []
    for blocks in (some & ~whole, whole):
        order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
        parts += [blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]]
    return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=(size, size), mask_mod=sees, seq_lengths=(num_queries, num_keys))


def _attend_blocked(
    q_BHTK: torch.Tensor,
    k_BGSK: torch.Tensor,
    v_BGSK: torch.Tensor,
    *,
    num_past: int,
    window: int | None,
    is_bounded: bool,
) -> torch.Tensor:
    y_BHTK = BlockedAttention.apply(q_BHTK.contiguous(), k_BGSK, v_BGSK.contiguous(), num_past, window, is_bounded)
    assert isinstance(y_BHTK, torch.Tensor)
    return y_BHTK
