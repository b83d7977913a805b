"""The list of products against torch's own count of a real forward and backward pass, and against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from firstlight.model import count
from firstlight.model.config import GATE_CHANNELS, GPTConfig
from firstlight.model.gemms import attention_gemms, head_gemms, linear_gemms, step_gemms
from firstlight.model.init import build_gpt
from firstlight.runtime.gemm_bench import by_kind, total_flops
from firstlight.train.loss import summed_cross_entropy

SMALL = GPTConfig(vocab_size=100, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=200)
GATED = replace(SMALL, mlp="swiglu", mlp_width=136, embed_norm=False, softcap=0.0)


def counted_flops(config: GPTConfig, *, batch_rows: int, seq_len: int, kernel: str, chunk_rows: int) -> int:
    """What torch counts in a real step. Attention's plain form stands for the fused one; bf16, as `addmm_` is not counted."""
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.bfloat16, seed=0)
    model.attention_kernel = kernel  # pyrefly: ignore
    ids = torch.arange(batch_rows * seq_len).remainder(config.vocab_size).view(batch_rows, seq_len)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = summed_cross_entropy(
            model.hidden(ids),
            model.lm_head.weight,
            ids,
            softcap=config.softcap,
            compute_dtype=torch.bfloat16,
            chunk_rows=chunk_rows,
        )
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
@pytest.mark.parametrize("config", [SMALL, GATED], ids=["classic", "gated"])
@pytest.mark.parametrize(("batch_rows", "seq_len"), [(1, 129), (3, 200), (2, 33)])
def test_the_list_has_the_flops_that_torch_counts(
    config: GPTConfig, kernel: str, batch_rows: int, seq_len: int
) -> None:
    options = {"batch_rows": batch_rows, "seq_len": seq_len, "kernel": kernel, "chunk_rows": 48}
    gemms = step_gemms(config, dtype=torch.float32, **options)
    counted = counted_flops(config, **options)
    assert total_flops(gemms) == counted


def test_the_modern_preset_has_gates_beside_the_list() -> None:
    config = replace(SMALL, value_embed_every=2, residual_scales=True, smear=True, backout=True)
    tokens = 2 * 40
    gemms = step_gemms(config, batch_rows=2, seq_len=40, dtype=torch.float32, kernel="blocked", chunk_rows=1000)
    gates = 2 * tokens * 3 * GATE_CHANNELS * (1 * config.n_kv_head + 1)  # one layer with values; the smear gate
    counted = counted_flops(config, batch_rows=2, seq_len=40, kernel="blocked", chunk_rows=1000)
    assert total_flops(gemms) + gates == counted
    assert gates < 0.02 * counted


@pytest.mark.parametrize(
    "config", [SMALL, GATED, GPTConfig.from_depth(3, vocab_size=1000, max_seq_len=300, head_dim=64)]
)
@pytest.mark.parametrize("seq_len", [1, 128, 177])
def test_the_flops_are_those_of_count(config: GPTConfig, seq_len: int) -> None:
    options = {"batch_rows": 5, "seq_len": seq_len, "dtype": torch.bfloat16, "chunk_rows": 64, "num_micro_batches": 3}
    tokens = 3 * 5 * seq_len
    square = step_gemms(config, kernel="sdpa", **options)
    assert total_flops(square) == tokens * count.flops_per_token(config, seq_len)
    # What is not masked, exactly: (T + 1) / 2 keys for a query.
    unmasked = sum(gemm.flops * gemm.used_frac for gemm in square)
    assert unmasked == pytest.approx(tokens * count.flops_per_token_causal(config, seq_len), rel=1e-12)
    blocked = by_kind(step_gemms(config, kernel="blocked", **options))
    # Blocks of 128 queries, each with the keys up to its last query's own.
    scores = sum(min(128, seq_len - first) * min(seq_len, first + 128) for first in range(0, seq_len, 128))
    assert blocked["attention"] == 12 * 15 * config.n_layer * config.n_embd * scores
    assert blocked["matrices"] + blocked["head"] == 6 * tokens * count.num_matmul_params(config)


def test_one_config_by_hand() -> None:
    """Depth 1, D 64, one head of 64, V 100, two rows of 129 tokens: N = 258, in chunks of 200 and 58."""
    config = GPTConfig(vocab_size=100, n_layer=1, n_head=1, n_kv_head=1, n_embd=64, max_seq_len=129)
    gemms = step_gemms(
        config, batch_rows=2, seq_len=129, dtype=torch.bfloat16, kernel="blocked", chunk_rows=200, block_ids=70
    )
    flops = by_kind(gemms)
    assert flops["matrices"] == 3 * 2 * 258 * (4 * 64 * 64 + 2 * 64 * 256) == 76_087_296
    assert flops["head"] == 3 * 2 * 258 * 64 * 100 == 9_907_200
    # Two blocks of queries: 128 against 128 keys, one against 129.
    assert flops["attention"] == 2 * 6 * 2 * 64 * (128 * 128 + 129) == 25_363_968
    named = {gemm.name: gemm for gemm in gemms}
    assert len(named) == len(gemms)
    logits, rest = named["head forward 200 rows"], named["head forward 58 rows"]
    assert (logits.m, logits.n, logits.k, logits.count, logits.transpose_b) == (200, 100, 64, 1, True)
    assert (rest.m, rest.n, rest.k, rest.count) == (58, 100, 64, 1)
    block = named["head grad-weight 200 rows, 30 ids"]
    assert (block.m, block.n, block.k, block.transpose_a, block.stored_a) == (30, 64, 200, True, 100)
    scores = named["attention scores 128x128"]
    assert (scores.batch, scores.m, scores.n, scores.k, scores.count, scores.transpose_b) == (2, 128, 128, 64, 1, True)


def test_products_of_a_matrix_fit_its_operands() -> None:
    forward, grad_input, grad_weight = linear_gemms(
        "w", num_tokens=7, inputs=3, outputs=5, dtype=torch.float32, count=2
    )
    assert [(g.m, g.k, g.n) for g in (forward, grad_input, grad_weight)] == [(7, 3, 5), (7, 5, 3), (5, 7, 3)]
    assert [g.transpose_a for g in (forward, grad_input, grad_weight)] == [False, False, True]


def test_grouped_heads_share_one_product() -> None:
    shared = attention_gemms(SMALL, batch_rows=3, seq_len=20, dtype=torch.float32, kernel="blocked")
    assert {gemm.batch for gemm in shared} == {3 * 2}
    assert {(gemm.m, gemm.n, gemm.k) for gemm in shared} == {(40, 20, 16), (40, 16, 20), (20, 16, 40)}


def test_a_head_smaller_than_its_chunk() -> None:
    names = [gemm.name for gemm in head_gemms(SMALL, num_tokens=5, dtype=torch.float32, chunk_rows=1000)]
    assert names == ["head forward 5 rows", "head grad-input 5 rows", "head grad-weight 5 rows, 100 ids"]
