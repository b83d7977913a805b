"""Claims: the counts are those of a real model: its parameters, torch's own FLOP counter, the tensors that autograd keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from firstlight.infer.cache import KVCache
from firstlight.model import count
from firstlight.model.attention import Kernel
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt

CONFIGS = [
    GPTConfig.from_depth(4, vocab_size=4096, max_seq_len=256),
    GPTConfig.from_depth(3, vocab_size=1000, max_seq_len=128, head_dim=64, n_kv_head=1),
    GPTConfig(vocab_size=301, n_layer=2, n_head=6, n_kv_head=2, n_embd=96, max_seq_len=64),
    GPTConfig.from_depth(3, vocab_size=1000, max_seq_len=128, preset="portable"),
    GPTConfig(301, 2, 6, 2, 96, 64, mlp="swiglu", mlp_width=200, embed_norm=False, softcap=0.0),
    GPTConfig(vocab_size=301, n_layer=2, n_head=2, n_kv_head=2, n_embd=96, max_seq_len=64, mlp_width=150),
]
IDS = ["depth4", "depth3-one-kv-head", "grouped", "portable", "portable-grouped", "narrow-mlp"]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_parameters_are_those_of_a_real_model(config: GPTConfig) -> None:
    with torch.device("meta"):
        model = GPT(config)
    found = {"embedding": 0, "head": 0, "attention": 0, "mlp": 0}
    for name, p in model.named_parameters():
        group = (
            "embedding" if "wte" in name else "head" if "lm_head" in name else "attention" if "attn" in name else "mlp"
        )
        found[group] += p.numel()
    assert count.num_params(config) == found
    assert count.weights_bytes(config) == sum(p.nbytes for p in model.parameters())
    assert count.num_matmul_params(config) == sum(p.numel() for p in model.parameters()) - found["embedding"]


def test_depth_4_by_hand() -> None:
    config = CONFIGS[0]
    assert count.num_params(config) == {
        "embedding": 4096 * 256, "head": 4096 * 256, "attention": 4 * 4 * 256**2, "mlp": 4 * 8 * 256**2,
    }  # fmt: skip
    assert count.num_scaling_params(config) == 1_048_576 + 3_145_728
    assert count.flops_per_token(config, 256) == 6 * 4_194_304 + 12 * 4 * 256 * 256
    assert count.optimizer_bytes(config) == 8 * 2_097_152 + 4 * 3_145_728


def test_portable_of_depth_4_by_hand() -> None:
    config = GPTConfig.from_depth(4, vocab_size=4096, max_seq_len=256, preset="portable")
    # 8/3 of 256 is 682.7, and the multiple of 64 nearest to it 704; three matrices of it.
    assert count.num_params(config) == {
        "embedding": 4096 * 256, "head": 4096 * 256, "attention": 4 * 4 * 256**2, "mlp": 4 * 3 * 256 * 704,
    }  # fmt: skip
    assert count.flops_per_token(config, 256) == 6 * 4_259_840 + 12 * 4 * 256 * 256
    assert count.optimizer_bytes(config) == 8 * 2_097_152 + 4 * 3_211_264


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_training_flops_are_those_that_torch_counts(config: GPTConfig) -> None:
    """One block of queries is the whole square of scores, which is what the convention counts."""
    B, T = 2, 64
    model = build_gpt(config, seed=0)
    model.attention_kernel = "blocked"
    inputs_BT = torch.zeros(B, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(inputs_BT).sum().backward()
    # The first product of the network needs a gradient of its input too: the embedding is trained.
    assert counter.get_total_flops() == B * T * count.flops_per_token(config, T)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_decoding_flops_are_those_that_torch_counts(config: GPTConfig) -> None:
    model = build_gpt(config, seed=0).requires_grad_(False)
    cache = KVCache.empty(config, batch_rows=3, max_len=33, dtype=torch.float32, device="cpu")
    model(torch.zeros(3, 32, dtype=torch.int64), cache)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(3, 1, dtype=torch.int64), cache)
    assert counter.get_total_flops() == 3 * count.decode_flops_per_token(config, 33)


def test_causal_flops_count_the_scores_one_by_one() -> None:
    config, T = CONFIGS[0], 10
    seen = sum(t + 1 for t in range(T))
    # Two products of D multiply-adds for each pair that is seen, two FLOPs each, three times (forward and two gradients).
    attention = config.n_layer * seen * config.n_embd * 2 * 2 * 3
    assert T * count.flops_per_token_causal(config, T) == T * 6 * count.num_matmul_params(config) + attention


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_a_real_cache(config: GPTConfig, dtype: torch.dtype) -> None:
    cache = KVCache.empty(config, batch_rows=3, max_len=50, dtype=dtype, device="cpu")
    expected = count.kv_cache_bytes(config, batch_rows=3, seq_len=50, cache_bytes=dtype.itemsize)
    assert cache.k_LBGMK.nbytes + cache.v_LBGMK.nbytes == expected


def kept_bytes(model: GPT, *, batch_rows: int, seq_len: int) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights and their casts not counted."""
    weights = {tuple(p.shape) for p in model.parameters()} | {tuple(p.T.shape) for p in model.parameters()}
    tables = {b.untyped_storage().data_ptr() for b in model.buffers()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in tables and tuple(tensor.shape) not in weights:
            # The tensor itself is held too: an address that was freed might come again.
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        x_BTD = model.hidden(torch.zeros(batch_rows, seq_len, dtype=torch.int64))
    return sum(size for size, _ in storages.values()) + x_BTD.nbytes


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [
        (torch.float32, "sdpa"),
        (torch.float32, "blocked"),
        (torch.float32, "native"),
        (torch.bfloat16, "sdpa"),
        (torch.bfloat16, "blocked"),
    ],
)
def test_activation_bytes_are_within_a_tenth_of_what_autograd_keeps(
    config: GPTConfig, dtype: torch.dtype, kernel: Kernel
) -> None:
    B, T = 3, config.max_seq_len
    model = build_gpt(config, compute_dtype=dtype, seed=0)
    model.attention_kernel = kernel
    model.written_out = kernel == "native"
    estimate = count.activation_bytes(
        config, batch_rows=B, seq_len=T, compute_bytes=dtype.itemsize, attention_kernel=kernel
    )
    assert estimate == pytest.approx(kept_bytes(model, batch_rows=B, seq_len=T), rel=0.1)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_activation_bytes_with_recomputation_are_the_kept_inputs_and_one_block(config: GPTConfig) -> None:
    B, T = 3, config.max_seq_len
    sizes = {"batch_rows": B, "seq_len": T, "compute_bytes": 2}
    model = build_gpt(config, compute_dtype=torch.bfloat16, seed=0)
    model.checkpoint_activations = True
    one_block = (
        count.activation_bytes(config, **sizes) - count.activation_bytes(config, **sizes, checkpoint_activations=True)
        + config.n_layer * B * T * config.n_embd * 2
    ) // (config.n_layer - 1)  # fmt: skip
    kept = kept_bytes(model, batch_rows=B, seq_len=T)
    estimate = count.activation_bytes(config, **sizes, checkpoint_activations=True)
    assert estimate == pytest.approx(kept + one_block, rel=0.1)
    assert estimate < count.activation_bytes(config, **sizes)


def test_activations_grow_with_rows_only() -> None:
    one = count.activation_bytes(CONFIGS[0], batch_rows=1, seq_len=256)
    assert count.activation_bytes(CONFIGS[0], batch_rows=7, seq_len=256) == 7 * one


def test_numbers_on_the_models_page_are_those_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    config = CONFIGS[0]
    exact = [
        *count.num_params(config).values(),
        sum(count.num_params(config).values()),
        count.num_matmul_params(config),
        count.flops_per_token(config, 256),
        count.flops_per_token_causal(config, 256),
        count.decode_flops_per_token(config, 256),
    ]
    mebibytes = [count.weights_bytes(config), count.optimizer_bytes(config)]
    mebibytes.append(count.kv_cache_bytes(config, batch_rows=1, seq_len=256))
    for recompute in (False, True):
        mebibytes.append(count.activation_bytes(config, batch_rows=16, seq_len=256, checkpoint_activations=recompute))
    missing = [text for text in (f"{n:,}" for n in exact) if f" {text} " not in page.replace("**", "")]
    missing += [text for text in (f"{n / 2**20:.0f} MiB" for n in mebibytes) if f" {text}" not in page]
    assert missing == []


@pytest.mark.parametrize(("depth", "vocab_size", "seq_len"), [(4, 4096, 256), (12, 32768, 2048)])
def test_numbers_of_the_three_presets_are_on_the_models_page(depth: int, vocab_size: int, seq_len: int) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    configs = [
        GPTConfig.from_depth(depth, vocab_size=vocab_size, max_seq_len=seq_len, preset=preset)
        for preset in ("classic", "modern", "portable")
    ]
    parameters = " | ".join(f"{sum(count.num_params(config).values()):,}" for config in configs)
    flops = " | ".join(f"{count.flops_per_token(config, seq_len):,}" for config in configs)
    assert f"| parameters, depth {depth} (V {vocab_size:,}) | {parameters} |" in page
    assert f"| FLOPs a token, depth {depth} (T {seq_len:,}) | {flops} |" in page


def test_fixed_bytes_of_training_by_hand() -> None:
    config = GPTConfig(vocab_size=100, n_layer=2, n_head=1, n_kv_head=1, n_embd=8, max_seq_len=16)
    # Embedding and head of 100 x 8; four matrices of 8 x 8 and two of 8 x 32 in each block; float32.
    outside, block = 2 * 800 * 4, (4 * 64 + 2 * 256) * 4
    weights = outside + 2 * block
    # AdamW keeps two numbers a parameter outside the blocks, Muon one inside.
    state = 2 * outside + 2 * block
    assert count.fixed_train_bytes(config) == 2 * weights + state
    assert count.fixed_train_bytes(config, world_size=2) == 2.5 * weights + state / 2
    assert count.fixed_train_bytes(config, world_size=2, device_type="cpu") == 3 * weights + state / 2
    sharded = count.fixed_train_bytes(config, world_size=2, shard_weights=True)
    assert sharded == (2 * weights + state) / 2 + 2 * outside + 2 * block
