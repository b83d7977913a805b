"""The preset `classic` as the model type `nanochat` of the transformers library, and back: names and sizes.

tests/model/test_gpt.py compares the two models' logits; here is only what one calls what.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from firstlight.errors import ConfigError, Problems
from firstlight.model.config import GPTConfig

MODEL_TYPE = "nanochat"
ARCHITECTURE = "NanoChatForCausalLM"

PARTS = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Names of a layer's matrices here and there."""

SIZES = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "max_seq_len": "max_position_embeddings",
}
"""Names of sizes here and in the library's types."""

ENDS = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
"""Names of what is not in a layer."""


def why_not(config: GPTConfig) -> list[str]:
    """What of a model the type cannot say; [] where it can say all."""
    problems = []
    if config.mlp != "relu2":
        problems.append(f"its MLP is {config.mlp}, and the type's is a squared ReLU")
    if not config.embed_norm:
        problems.append("its embedding is not normed, and the type's is")
    return problems + options_of_ours(config)


def options_of_ours(config: GPTConfig) -> list[str]:
    """What of a model no type of the library can say."""
    problems = ["it has value embeddings"] if config.value_embed_every else []
    problems += [f"it has {name}" for name in ("residual_scales", "smear", "backout") if getattr(config, name)]
    if config.qk_gain != 1:
        problems.append(f"its qk_gain is {config.qk_gain}, and the type's is 1")
    return problems


def to_config(config: GPTConfig) -> dict[str, Any]:
    """The sizes as ``config.json`` has them, without token ids and dtype. Raises ConfigError with every reason."""
    problems = Problems()
    for reason in why_not(config):
        problems.add(f"the type {MODEL_TYPE} cannot hold this model: {reason}", hint="--as remote-code can hold any")
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
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.softcap or None,
        "rms_norm_eps": 1e-6,
        "hidden_act": "relu2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }


def to_weights(weights: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Our tensors under the type's names; the same tensors, nothing is copied."""
    found = {}
    for name, tensor in weights.items():
        there = renamed(name, PARTS)
        if there is None:
            raise ConfigError(f"the type {MODEL_TYPE} has no place for the weights {name}")
        found[there] = tensor
    return found


def from_config(values: Mapping[str, Any]) -> GPTConfig:
    """Sizes from a ``config.json`` of the type. Raises ConfigError with every reason why it does not fit."""
    problems = Problems()
    for name, wanted in (
        ("hidden_act", "relu2"),
        ("attention_bias", False),
        ("tie_word_embeddings", False),
        ("rms_norm_eps", 1e-6),
    ):
        if values.get(name, wanted) != wanted:
            problems.add(f"{name} is {values[name]!r}, and a model here has {wanted!r}")
    sizes = sizes_from(values, problems, MODEL_TYPE)
    if type(values.get("intermediate_size", 1)) is not int:
        problems.add(f"intermediate_size is {values['intermediate_size']!r}, not a whole number")
    problems.raise_if_any()
    width = values.get("intermediate_size", 4 * sizes["n_embd"])
    return GPTConfig(
        **sizes,
        softcap=float(values.get("final_logit_softcapping", 15.0) or 0.0),
        mlp_width=0 if width == 4 * sizes["n_embd"] else width,
    )


def sizes_from(values: Mapping[str, Any], problems: Problems, model_type: str) -> dict[str, Any]:
    """Sizes and the base of the rotation from a ``config.json``, by the names of `GPTConfig`. What is wrong is added to
    ``problems``; the sizes are of use only where there is nothing.
    """
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        problems.add(f"its rotary embedding is {rope['rope_type']!r}, and a model here has the default one")
    found: dict[str, Any] = {}
    for ours, theirs in SIZES.items():
        found[ours] = values.get(theirs)
        if type(found[ours]) is not int:  # True is an int to isinstance
            problems.add(f"{model_type}: {theirs} is {found[ours]!r}, not a whole number")
    found["n_kv_head"] = values.get("num_key_value_heads") or found["n_head"]
    found["rope_base"] = float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)
    return found


def from_weights(weights: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """The type's tensors under our names. Raises ConfigError that names those that have no place in a model here."""
    found, unknown = {}, []
    for name, tensor in weights.items():
        ours = renamed_back(name, PARTS)
        if ours is None:
            unknown.append(name)
        else:
            found[ours] = tensor
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ConfigError(f"no model here has the weights {', '.join(unknown[:3])}{more}")
    return found


def renamed(name: str, parts: Mapping[str, str]) -> str | None:
    """A type's name for one of our weights, or None. parts: names of a layer's matrices here and there.

    >>> renamed("transformer.h.3.attn.c_q.weight", PARTS)
    'model.layers.3.self_attn.q_proj.weight'
    """
    if name in ENDS:
        return ENDS[name]
    pieces = name.removesuffix(".weight").split(".", 3)
    if len(pieces) != 4 or pieces[:2] != ["transformer", "h"] or pieces[3] not in parts:
        return None
    return f"model.layers.{pieces[2]}.{parts[pieces[3]]}.weight"


def renamed_back(name: str, parts: Mapping[str, str]) -> str | None:
    """Inverse of `renamed`."""
    ends = {theirs: ours for ours, theirs in ENDS.items()}
    if name in ends:
        return ends[name]
    back = {theirs: ours for ours, theirs in parts.items()}
    pieces = name.removesuffix(".weight").split(".", 3)
    if len(pieces) != 4 or pieces[:2] != ["model", "layers"] or pieces[3] not in back:
        return None
    return f"transformer.h.{pieces[2]}.{back[pieces[3]]}.weight"
