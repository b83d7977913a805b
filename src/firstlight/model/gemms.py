"""The matrix products of a training step's forward and backward pass: a list, from the sizes alone.

For each matrix W (O outputs, I inputs) and N tokens, as `firstlight.model.precision.Linear` and autograd run them:

    forward       y_NO  = x_NI W_OI^T      grad-input    dx_NI = dy_NO W_OI      grad-weight   dW_OI = dy_NO^T x_NI

The head's three are those of the loss layer, a chunk of R tokens at a time; attention's are of scores and values, each
with two gradients. The sum of the FLOPs is that of `firstlight.model.count.flops_per_token` (with `blocked` and
`native` attention less, by the blocks that are never computed). The optimizer's products are in `firstlight.optim.gemms`.

Shapes: B rows, T tokens in a row, N = B T tokens, D width, V ids, R tokens of a chunk; H, G, K as in attention.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from firstlight.model.attention import Kernel
from firstlight.model.blocked import BLOCK_ROWS
from firstlight.model.config import GPTConfig
from firstlight.model.native import attention as native
from firstlight.runtime.gemm_bench import Gemm


def linear_gemms(
    name: str, *, num_tokens: int, inputs: int, outputs: int, dtype: torch.dtype, count: int
) -> list[Gemm]:
    """The three products of one matrix on N tokens."""
    N, I, O = num_tokens, inputs, outputs  # noqa: E741
    return [
        Gemm(f"{name} forward", "matrices", N, O, I, dtype, count, transpose_b=True),
        Gemm(f"{name} grad-input", "matrices", N, I, O, dtype, count),
        Gemm(f"{name} grad-weight", "matrices", O, I, N, dtype, count, transpose_a=True),
    ]


def attention_gemms(
    config: GPTConfig, *, batch_rows: int, seq_len: int, dtype: torch.dtype, kernel: Kernel
) -> list[Gemm]:
    """Scores and values of all layers, and their four gradients: six products.

    blocked, native: of each block of queries with the keys that it sees. sdpa, flex: of all T x T scores, as `flops_per_token`
    counts, of which ``used_frac`` are not masked; fused kernels also compute the scores again for the backward pass,
    which is not counted.
    """
    H, G, K, L = config.n_head, config.n_kv_head, config.head_dim, config.n_layer
    if kernel in ("blocked", "native"):
        # The blocked kernel stacks the queries of heads that share keys, the native one takes head by head.
        block, stacked = (BLOCK_ROWS, H // G) if kernel == "blocked" else (native.BLOCK_ROWS, 1)
        ends = [(first, min(seq_len, first + block)) for first in range(0, seq_len, block)]
        sizes = [(stacked * (last - first), last, 1.0) for first, last in ends]
        batch = batch_rows * H // stacked
    else:
        sizes = [(seq_len, seq_len, (seq_len + 1) / (2 * seq_len))]
        batch = batch_rows * H
    found = []
    for N, M, used in sizes:
        shapes = (
            ("scores", N, M, K, False, True),
            ("values", N, K, M, False, False),
            ("grad of weights", N, M, K, False, True),
            ("grad of v", M, K, N, True, False),
            ("grad of q", N, K, M, False, False),
            ("grad of k", M, K, N, True, False),
        )
        for name, m, n, k, ta, tb in shapes:
            found.append(
                Gemm(
                    f"attention {name} {N}x{M}", "attention", m, n, k, dtype, L, batch,
                    transpose_a=ta, transpose_b=tb, used_frac=used,
                )
            )  # fmt: skip
    return found


def head_gemms(
    config: GPTConfig, *, num_tokens: int, dtype: torch.dtype, chunk_rows: int, block_ids: int | None = None
) -> list[Gemm]:
    """Logits and their two gradients, in chunks of R tokens (the last one may be smaller).

    chunk_rows: `firstlight.train.loss.default_chunk_rows`. block_ids: ids of the head's gradient that are made at once;
    None is all.
    """
    V, D = config.vocab_size, config.n_embd
    block = min(V, block_ids or V)
    found = []
    whole, rest = divmod(num_tokens, min(chunk_rows, num_tokens))
    for R, count in ((min(chunk_rows, num_tokens), whole), (rest, 1)):
        if R == 0:
            continue
        found += [
            Gemm(f"head forward {R} rows", "head", R, V, D, dtype, count, transpose_b=True),
            Gemm(f"head grad-input {R} rows", "head", R, D, V, dtype, count),
        ]
        for ids, blocks in ((block, V // block), (V % block, 1)):
            if ids:
                name = f"head grad-weight {R} rows, {ids} ids"
                found.append(
                    Gemm(name, "head", ids, D, R, dtype, count * blocks, transpose_a=True, stored_a=V if ids < V else 0)
                )
    return found


def step_gemms(
    config: GPTConfig,
    *,
    batch_rows: int,
    seq_len: int,
    dtype: torch.dtype,
    kernel: Kernel,
    chunk_rows: int,
    block_ids: int | None = None,
    num_micro_batches: int = 1,
) -> list[Gemm]:
    """All products of forward and backward pass of one step on one device.

    dtype: the compute dtype. kernel: attention's (`firstlight.model.attention.choose_kernel`). chunk_rows, block_ids: see
    `head_gemms`. The gates of the preset `modern` are left out, as in `count.num_matmul_params`.
    """
    D, L, F = config.n_embd, config.n_layer, config.mlp_inner
    num_tokens = batch_rows * seq_len
    kv_width = config.n_kv_head * config.head_dim
    matrices = {"c_q": (D, D), "c_k": (D, kv_width), "c_v": (D, kv_width), "attn.c_proj": (D, D)}
    matrices |= {"c_gate": (D, F)} if config.mlp == "swiglu" else {}
    matrices |= {"c_fc": (D, F), "mlp.c_proj": (F, D)}
    count = L * num_micro_batches
    found = []
    for name, (inputs, outputs) in matrices.items():
        found += linear_gemms(name, num_tokens=num_tokens, inputs=inputs, outputs=outputs, dtype=dtype, count=count)
    once = attention_gemms(config, batch_rows=batch_rows, seq_len=seq_len, dtype=dtype, kernel=kernel)
    once += head_gemms(config, num_tokens=num_tokens, dtype=dtype, chunk_rows=chunk_rows, block_ids=block_ids)
    return found + [replace(gemm, count=gemm.count * num_micro_batches) for gemm in once]
