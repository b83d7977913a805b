"""The preset `portable` as the model type `qwen3` of the transformers library (and of vLLM, llama.cpp, MLX), and back.

Two things differ besides names. The type has weights in its norms: they are written as ones. And it turns the pairs of
a head the other way round: ``(a, b) -> (a cos - b sin, b cos + a sin)``; with the two halves of each head's rows of the
query and key matrices exchanged that is our rotation, and products of queries and keys are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from firstlight.errors import ConfigError, Problems
from firstlight.interop.nanochat_type import options_of_ours, renamed, renamed_back, sizes_from
from firstlight.model.config import GPTConfig

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"

PARTS = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
"""Names of a layer's matrices here and there."""

LAYER_NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")


def why_not(config: GPTConfig) -> list[str]:
    """What of a model the type cannot say; [] where it can say all."""
    problems = []
    if config.mlp != "swiglu":
        problems.append(f"its MLP is {config.mlp}, and the type's is swiglu")
    if config.embed_norm:
        problems.append("its embedding is normed, and the type's is not")
    if config.softcap:
        problems.append(f"its logits are capped at {config.softcap:g}, and the type has no cap")
    return problems + options_of_ours(config)


def to_config(config: GPTConfig) -> dict[str, Any]:
    """The sizes as ``config.json`` has them, without token ids and dtype. Raises ConfigError with every reason."""
    problems = Problems()
    for reason in why_not(config):
        problems.add(
            f"the type {MODEL_TYPE} cannot hold this model: {reason}",
            hint="--as remote-code can hold any; for other programs, train with --preset portable",
        )
    problems.raise_if_any()
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_inner,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        # What vLLM and others read that do not know rope_parameters yet.
        "rope_theta": config.rope_base,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    }


def to_weights(weights: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Our tensors under the type's names, with ones for its norms; queries and keys are copies."""
    like = weights["lm_head.weight"]
    ones_D = torch.ones(config.n_embd, dtype=like.dtype, device=like.device)
    ones_K = torch.ones(config.head_dim, dtype=like.dtype, device=like.device)
    found = {"model.norm.weight": ones_D}
    for layer in range(config.n_layer):
        for norm in LAYER_NORMS:
            found[f"model.layers.{layer}.{norm}.weight"] = ones_K if "self_attn" in norm else ones_D
    # Each norm has memory of its own: files of weights do not take the same tensor twice.
    found = {name: tensor.clone() for name, tensor in found.items()}
    for name, tensor in weights.items():
        there = renamed(name, PARTS)
        if there is None:
            raise ConfigError(f"the type {MODEL_TYPE} has no place for the weights {name}")
        found[there] = _halves_exchanged(tensor, config) if _is_turned(name) else tensor
    return found


def from_config(values: Mapping[str, Any]) -> GPTConfig:
    """Sizes from a ``config.json`` of the type. Raises ConfigError with every reason why it does not fit."""
    problems = Problems()
    for name, wanted in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("tie_word_embeddings", False),
        ("rms_norm_eps", 1e-6),
        ("use_sliding_window", False),
    ):
        if values.get(name, wanted) != wanted:
            problems.add(f"{name} is {values[name]!r}, and a model here has {wanted!r}")
    sizes = sizes_from(values, problems, MODEL_TYPE)
    heads = values.get("num_attention_heads")
    if isinstance(heads, int) and values.get("head_dim", 128) * heads != values.get("hidden_size"):
        problems.add(
            f"{heads} heads of {values.get('head_dim', 128)} are not the width {values.get('hidden_size')}, as here"
        )
    if type(values.get("intermediate_size")) is not int:
        problems.add(f"intermediate_size is {values.get('intermediate_size')!r}, not a whole number")
    problems.raise_if_any()
    return GPTConfig(**sizes, softcap=0.0, mlp="swiglu", mlp_width=values["intermediate_size"], embed_norm=False)


def from_weights(weights: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """The type's tensors under our names.

    Raises ConfigError with the norms whose weights are not all one (a model here has none), and with names that have no
    place here.
    """
    problems = Problems()
    found, unknown, learned = {}, [], []
    for name, tensor in weights.items():
        if name == "model.norm.weight" or name.removesuffix(".weight").split(".", 3)[-1] in LAYER_NORMS:
            if not bool((tensor == 1).all()):
                learned.append(name)
            continue
        ours = renamed_back(name, PARTS)
        if ours is None:
            unknown.append(name)
        else:
            found[ours] = _halves_exchanged(tensor, config) if _is_turned(ours) else tensor
    for names, what in (
        (unknown, "no model here has the weights"),
        (learned, "norms here have no weights, these have"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.add(f"{what} {', '.join(names[:3])}{more}")
    problems.raise_if_any()
    return found


def _is_turned(name: str) -> bool:
    return name.endswith(("attn.c_q.weight", "attn.c_k.weight"))


def _halves_exchanged(weight: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Rows of each head with their two halves exchanged; its own inverse."""
    heads = weight.view(-1, 2, config.head_dim // 2, weight.shape[-1])
    return heads.flip(1).reshape(weight.shape)
