"""The preset `portable` against the `qwen3` type of transformers with the same weights.

1. The logits are the same: grouped heads, odd depths, other rotation, other inner widths, both kernels. 2. A cache, bf16 and
recomputation change nothing else. 3. It starts at a loss of ln(V) and with the sizes that it would have with a norm.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from firstlight.infer.cache import KVCache
from firstlight.model.attention import Kernel
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT
from firstlight.model.init import build_gpt
from firstlight.model.precision import rms_norm

transformers = pytest.importorskip("transformers")

TINY = GPTConfig(
    vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=32, mlp="swiglu", mlp_width=100,
    embed_norm=False, softcap=0.0,
)  # fmt: skip
CONFIGS = {
    "depth 3": GPTConfig.from_depth(3, vocab_size=301, max_seq_len=48, preset="portable"),
    "depth 4, one kv head": GPTConfig.from_depth(4, vocab_size=512, max_seq_len=40, n_kv_head=1, preset="portable"),
    "depth 5": GPTConfig.from_depth(5, vocab_size=77, max_seq_len=24, preset="portable"),
    "grouped": replace(TINY, n_layer=3, n_head=6, n_kv_head=2, n_embd=96, rope_base=5000.0, mlp_width=0),
    "odd": GPTConfig(77, 1, 3, 1, 30, 17, mlp="swiglu", mlp_width=41, embed_norm=False, softcap=0.0),
    "long": replace(TINY, n_head=2, n_kv_head=1, n_embd=32, max_seq_len=1024, mlp_width=96),
}
PARTS = {
    "attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj", "mlp.c_gate": "mlp.gate_proj", "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip


def random_gpt(config: GPTConfig, *, compute_dtype: torch.dtype = torch.float32) -> GPT:
    """A model whose every weight matters. Embeddings are small and unequal, so that a norm behind them would show, and
    logits are far beyond any cap."""
    model = build_gpt(config, seed=0, compute_dtype=compute_dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = 2.0 if name == "lm_head.weight" else weight.shape[1] ** -0.5
            weight.normal_(0.0, std, generator=generator)
        model.transformer.wte.weight.mul_(torch.linspace(0.5, 3.0, config.vocab_size)[:, None])
    return model


def random_ids(config: GPTConfig, *shape: int) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def qwen3_logits(model: GPT, inputs_BT: torch.Tensor) -> torch.Tensor:
    """Logits of transformers' model. It rotates the other way: with the halves of each head's queries and keys exchanged
    its products of queries and keys are ours."""
    config = model.config
    reference = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=model.state_dict()["transformer.h.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.n_embd // config.n_head,
            max_position_embeddings=config.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    weights = {name: torch.ones_like(w) for name, w in reference.state_dict().items() if "norm" in name}
    for name, weight in model.state_dict().items():
        if name.startswith("transformer.h."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part in ("attn.c_q", "attn.c_k"):
                a, b = weight.view(-1, 2, config.head_dim // 2, config.n_embd).unbind(1)
                weight = torch.stack((b, a), dim=1).reshape(weight.shape)
            weights[f"model.layers.{layer}.{PARTS[part]}.weight"] = weight
        else:
            weights["model.embed_tokens.weight" if "wte" in name else name] = weight
    reference.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return reference.eval()(inputs_BT).logits


@pytest.mark.parametrize("kernel", ["native", "sdpa", "blocked"])
@pytest.mark.parametrize("case", CONFIGS)
def test_logits_are_those_of_qwen3(case: str, kernel: Kernel) -> None:
    config = CONFIGS[case]
    model = random_gpt(config)
    model.attention_kernel = kernel
    inputs_BT = random_ids(config, 2, config.max_seq_len)
    with torch.no_grad():
        logits_BTV = model(inputs_BT)
    expected_BTV = qwen3_logits(model, inputs_BT)
    assert logits_BTV.dtype == torch.float32
    assert expected_BTV.abs().max() > 16.0, "no cap may hide in the comparison"
    assert (logits_BTV - expected_BTV).abs().max() < 2e-5 * expected_BTV.abs().max()


@pytest.mark.parametrize("change", [{"embed_norm": True}, {"softcap": 15.0}, {"n_kv_head": 1}, {"rope_base": 500.0}])
def test_the_comparison_would_notice(change: dict) -> None:
    ids_BT = random_ids(TINY, 1, 32)
    model = random_gpt(replace(TINY, **change))
    if "embed_norm" in change or "softcap" in change:
        with torch.no_grad():
            assert (model(ids_BT) - qwen3_logits(model, ids_BT)).abs().max() > 0.1
    else:
        changed, plain = model, random_gpt(TINY)
        with torch.no_grad():
            assert (changed(ids_BT) - qwen3_logits(plain, ids_BT)).abs().max() > 0.1


@pytest.mark.parametrize("pieces", [(17,), (1,) * 17, (5, 1, 11)])
def test_a_cache_gives_the_logits_of_the_whole_row(pieces: tuple[int, ...]) -> None:
    model = random_gpt(TINY)
    ids_BT = random_ids(TINY, 3, 17)
    cache = KVCache.empty(TINY, batch_rows=3, max_len=20, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        parts = [model(piece_BT, cache) for piece_BT in ids_BT.split(pieces, dim=1)]
        assert (torch.cat(parts, dim=1) - model(ids_BT)).abs().max() < 1e-3


def test_bf16_is_near_float32() -> None:
    ids_BT = random_ids(TINY, 2, 20)
    with torch.no_grad():
        exact, rounded = random_gpt(TINY)(ids_BT), random_gpt(TINY, compute_dtype=torch.bfloat16)(ids_BT)
    assert (exact - rounded).norm() < 0.05 * exact.norm()


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        model = random_gpt(TINY)
        model.checkpoint_activations = recompute
        model(random_ids(TINY, 2, 16)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("depth", [1, 4])
def test_it_starts_at_ln_of_the_vocabulary_and_as_if_it_were_normed(depth: int) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=4096, max_seq_len=64, preset="portable")
    model = build_gpt(config, seed=3)
    with torch.no_grad():
        logits_BTV = model(random_ids(config, 4, 64))
        rows = model.transformer.wte.weight
        assert (rows - rms_norm(rows)).square().mean().sqrt() < 0.1
    loss = cross_entropy(logits_BTV.flatten(0, 1), random_ids(config, 4, 64).flatten())
    assert loss.item() == pytest.approx(math.log(4096), rel=0.01)


@pytest.mark.parametrize("options", [{"mlp": "swiglu"}, {"embed_norm": False}, {"softcap": 0.0}, {"mlp_width": 40}])
def test_each_option_works_beside_those_of_modern(options: dict) -> None:
    config = GPTConfig(61, 3, 4, 2, 48, 24, value_embed_every=2, residual_scales=True, smear=True, backout=True)
    plain, other = build_gpt(config, seed=0), build_gpt(replace(config, **options), seed=0)
    with torch.no_grad():
        for model in (plain, other):
            for weight in model.parameters():
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=torch.Generator().manual_seed(weight.numel()))
        ids_BT = random_ids(config, 2, 20)
        assert (plain(ids_BT) - other(ids_BT)).abs().max() > 1e-4
    other(ids_BT).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in other.parameters())
