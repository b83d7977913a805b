"""Claims about the fast step.

1. In float32 its logits are those of full passes without a cache, for each option of the model and at odd shapes, and
greedy texts are the same; in bf16 within the rounding of bf16. 2. Reading the whole cache under a mask gives the same as
reading the tokens that there are, and never looks behind them. 3. Nothing of the model is changed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from firstlight.infer import fast
from firstlight.infer.cache import KVCache
from firstlight.infer.decoder import Decoder, prefill
from firstlight.infer.engine import generate
from firstlight.model.gpt import GPT, GPTConfig

SIZES: dict[str, Any] = {"vocab_size": 97, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 48, "max_seq_len": 40}

CASES: dict[str, dict[str, Any]] = {
    "classic": {},
    "one layer": {"n_layer": 1},
    "one head": {"n_head": 1, "n_kv_head": 1, "n_embd": 18},
    "three heads": {"n_head": 3, "n_kv_head": 3, "n_embd": 42},
    "six heads on three": {"n_head": 6, "n_kv_head": 3, "n_embd": 36},
    "five heads on one": {"n_head": 5, "n_kv_head": 1, "n_embd": 50, "vocab_size": 33},
    "narrow": {"n_head": 2, "n_kv_head": 1, "n_embd": 8},
    "value embeddings": {"value_embed_every": 1},
    "every second": {"value_embed_every": 2, "n_layer": 4},
    "residual scales": {"residual_scales": True},
    "smear": {"smear": True},
    "backout": {"backout": True},
    "gain": {"qk_gain": 1.3, "rope_base": 500.0, "softcap": 4.0},
    "portable": {"mlp": "swiglu", "mlp_width": 112, "embed_norm": False, "softcap": 0.0},
    "gated, odd inner width": {"mlp": "swiglu", "mlp_width": 41},
    "inner width": {"mlp_width": 77},
    "no norm behind the embedding": {"embed_norm": False, "smear": True, "residual_scales": True},
    "no cap": {"softcap": 0.0},
    "all": {"value_embed_every": 2, "residual_scales": True, "smear": True, "backout": True, "qk_gain": 0.8},
    "all in one layer": {
        "value_embed_every": 1, "residual_scales": True, "smear": True, "backout": True, "n_layer": 1, "n_kv_head": 1,
    },
}  # fmt: skip


def random_gpt(options: dict[str, Any], compute_dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(GPTConfig(**(SIZES | options)), compute_dtype=compute_dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = 0.3 if name == "lm_head.weight" else weight.shape[-1] ** -0.5
            weight.normal_(0.0 if weight.ndim > 1 else 0.7, std if weight.ndim > 1 else 0.2, generator=generator)
    return model


def random_ids(model: GPT, *shape: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def filled_cache(model: GPT, prompt_BT: torch.Tensor, *, dtype: torch.dtype, max_len: int = 30) -> KVCache:
    rows = prompt_BT.shape[0]
    cache = KVCache.empty(model.config, batch_rows=rows, max_len=max_len, dtype=model.compute_dtype, device="cpu")
    prefill(model, prompt_BT, cache, chunk=512)
    cache.k_LBGMK, cache.v_LBGMK = cache.k_LBGMK.to(dtype), cache.v_LBGMK.to(dtype)
    return cache


@torch.no_grad()
def largest_error(model: GPT, *, batch_rows: int, dtype: torch.dtype, num_prompt: int = 7, num_steps: int = 9) -> float:
    ids_BT = random_ids(model, batch_rows, num_prompt + num_steps)
    decoder = Decoder(model, filled_cache(model, ids_BT[:, :num_prompt], dtype=dtype))
    expected_BTV = model(ids_BT)
    errors = [
        (decoder.next_logits(ids_BT[:, t]) - expected_BTV[:, t]).abs().max().item()
        for t in range(num_prompt, num_prompt + num_steps)
    ]
    return max(errors)


@pytest.mark.parametrize("batch_rows", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_full_passes(case: str, batch_rows: int) -> None:
    assert largest_error(random_gpt(CASES[case]), batch_rows=batch_rows, dtype=torch.float32) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_bf16_logits_are_within_its_rounding(case: str, dtype: torch.dtype) -> None:
    """Against the same rounded weights in float64 the step is no worse than twice the model's own bf16 pass."""
    model = random_gpt(CASES[case], torch.bfloat16)
    ids_BT = random_ids(model, 3, 16)
    exact = random_gpt(CASES[case]).double()
    exact.compute_dtype = torch.float64
    with torch.no_grad():
        for module in exact.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = torch.float64
        for name, weight in exact.named_parameters():
            if ".c_" in name or "gate" in name or name == "lm_head.weight":
                weight.copy_(weight.bfloat16())
        expected_BV = exact(ids_BT)[:, -1]
        own_error = (model(ids_BT)[:, -1] - expected_BV).abs().max().item()
        decoder = Decoder(model, filled_cache(model, ids_BT[:, :-1], dtype=dtype))
        error = (decoder.next_logits(ids_BT[:, -1]) - expected_BV).abs().max().item()
    assert error < 2 * own_error + 0.02
    assert own_error < 0.5


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_is_the_plain_loops(case: str) -> None:
    model = random_gpt(CASES[case])
    ids = [5, 20, 0, 31]
    found = [i for (i,) in generate(model, ids, max_new_tokens=100, temperature=0.0)]
    with torch.no_grad():
        while len(ids) <= model.config.max_seq_len:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert found == ids[4:]


@pytest.mark.parametrize("case", ["classic", "five heads on one", "portable", "all"])
def test_masked_attention_gives_the_same_and_does_not_look_ahead(case: str) -> None:
    model = random_gpt(CASES[case])
    ids_BT = random_ids(model, 3, 12)
    weights = fast.prepare(model, dtype=torch.float32)
    logits = []
    for is_masked in (False, True):
        cache = filled_cache(model, ids_BT[:, :11], dtype=torch.float32)
        cache.k_LBGMK[:, :, :, 11:] = 1e4
        cache.v_LBGMK[:, :, :, 11:] = 1e4
        attend = fast.attend_to_all(cache, torch.tensor([11])) if is_masked else fast.attend_to_prefix(cache, 11)
        with torch.no_grad():
            logits.append(
                fast.decode_step(
                    weights, ids_BT[:, 11], ids_BT[:, 10], weights.cos_M1K[11], weights.sin_M1K[11], attend
                )
            )
        assert (cache.k_LBGMK[:, :, :, 12:] == 1e4).all(), "only the new token's place is written"
    assert (logits[0] - logits[1]).abs().max() < 1e-5


def test_dtype_of_products() -> None:
    bf16 = torch.bfloat16
    assert fast.decode_dtype(bf16, device_type="cpu", batch_rows=fast.FEW_ROWS - 1) == torch.float32
    assert fast.decode_dtype(bf16, device_type="cpu", batch_rows=fast.FEW_ROWS) == bf16
    assert fast.decode_dtype(bf16, device_type="cuda", batch_rows=1) == bf16


def test_prepared_weights_leave_the_model_alone() -> None:
    model = random_gpt(CASES["all"])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    largest_error(model, batch_rows=2, dtype=torch.float32)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad
        assert not weight.is_inference()
