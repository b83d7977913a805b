"""Claims about the start of weights.

1. Every parameter matches one row of the table and has its spread. 2. Nothing of the memory that was there remains.
3. The same seed gives the same numbers, whatever else the model holds; the global random state is not used.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import INIT_TABLE, build_gpt, init_row, init_weights
from firstlight.model.rope import rope_tables

CONFIG = GPTConfig(vocab_size=512, n_layer=2, n_head=4, n_kv_head=2, n_embd=128, max_seq_len=16)
EVERYTHING = replace(CONFIG, value_embed_every=1, residual_scales=True, smear=True, backout=True)


def test_every_parameter_has_the_spread_that_its_row_says() -> None:
    expected = {
        "transformer.wte.weight": 1.0, "lm_head.weight": 0.001, "attn.c_q.weight": 128**-0.5, "attn.c_k.weight": 128**-0.5,
        "attn.c_v.weight": 128**-0.5, "attn.c_proj.weight": 0.0, "mlp.c_fc.weight": 128**-0.5, "mlp.c_proj.weight": 0.0,
    }  # fmt: skip
    seen = set()
    for name, weight in build_gpt(CONFIG, seed=0).named_parameters():
        key = name if name in expected else name.split(".", 3)[3]
        seen.add(key)
        assert weight.std().item() == pytest.approx(expected[key], rel=0.03, abs=1e-12)
        assert abs(weight.mean().item()) <= 4 * expected[key] / weight.numel() ** 0.5
        if expected[key] == 128**-0.5:
            assert weight.abs().max() <= 3**0.5 * 128**-0.5, "uniform has no outliers"
    assert seen == set(expected)


def test_the_matrices_of_a_gated_mlp_start_like_those_of_the_other() -> None:
    model = build_gpt(replace(CONFIG, mlp="swiglu", mlp_width=320), seed=0)
    for block in model.transformer.h:
        assert block.mlp.c_gate.weight.shape == block.mlp.c_fc.weight.shape == (320, 128)
        assert not torch.equal(block.mlp.c_gate.weight, block.mlp.c_fc.weight)
        for matrix in (block.mlp.c_gate, block.mlp.c_fc):
            assert matrix.weight.std().item() == pytest.approx(128**-0.5, rel=0.03)
        assert not block.mlp.c_proj.weight.any(), "a block starts by adding nothing"


def test_every_row_of_the_table_is_used_and_says_why() -> None:
    used = {init_row(name) for name, _ in GPT(EVERYTHING).named_parameters()}
    assert used == set(INIT_TABLE)
    assert all(row.why and row.source for row in INIT_TABLE)


def test_a_parameter_without_a_row_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="matches 0 rows"):
        init_row("transformer.h.0.attn.gate")


def test_poisoned_memory_leaves_no_nan() -> None:
    with torch.device("meta"):
        model = GPT(CONFIG)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    init_weights(model, seed=0)
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))
    cos_TJ, sin_TJ = rope_tables(16, 32, base=10000.0)
    assert torch.equal(model.rope_cos, cos_TJ)
    assert torch.equal(model.rope_sin, sin_TJ)


def test_built_model_lies_on_its_device_with_float32_weights() -> None:
    model = build_gpt(CONFIG, device=torch.device("cpu"), compute_dtype=torch.bfloat16, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


def test_same_seed_gives_the_same_numbers_and_another_does_not() -> None:
    torch.manual_seed(1)
    first = build_gpt(CONFIG, seed=7).state_dict()
    torch.manual_seed(2)
    again = build_gpt(CONFIG, seed=7, compute_dtype=torch.bfloat16).state_dict()
    other = build_gpt(CONFIG, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_numbers_do_not_depend_on_the_other_parameters() -> None:
    shallow = build_gpt(CONFIG, seed=7).state_dict()
    deep = build_gpt(
        GPTConfig(vocab_size=512, n_layer=5, n_head=4, n_kv_head=2, n_embd=128, max_seq_len=99), seed=7
    ).state_dict()
    assert all(torch.equal(shallow[name], deep[name]) for name in shallow)
    assert not torch.equal(shallow["transformer.h.0.attn.c_k.weight"], shallow["transformer.h.0.attn.c_v.weight"])


def test_global_random_state_is_not_used() -> None:
    before = torch.get_rng_state()
    build_gpt(CONFIG, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
