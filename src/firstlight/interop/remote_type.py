"""Any model as the type `firstlight`: our own config and names, with the modelling file beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from firstlight.config import from_dict
from firstlight.errors import ConfigError
from firstlight.model.config import GPTConfig

MODEL_TYPE = "firstlight"
ARCHITECTURE = "FirstlightForCausalLM"

CODE_FILE = Path(__file__).parent / "remote_code" / "modeling_firstlight.py"
"""Copied beside the weights. It is never imported here: it would load transformers."""


def why_not(config: GPTConfig) -> list[str]:
    """Nothing: the file has every option."""
    return []


def to_config(config: GPTConfig) -> dict[str, Any]:
    """The sizes as ``config.json`` has them, without token ids and dtype."""
    module = CODE_FILE.stem
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": f"{module}.FirstlightConfig",
            "AutoModelForCausalLM": f"{module}.{ARCHITECTURE}",
        },
        **asdict(config),
        "tie_word_embeddings": False,
    }


def to_weights(weights: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """The same tensors: the names are ours."""
    return dict(weights)


def from_config(values: Mapping[str, Any]) -> GPTConfig:
    """Sizes from a ``config.json`` of the type. Raises ConfigError for what is missing or impossible."""
    names = {each.name for each in fields(GPTConfig)}
    found = {name: value for name, value in values.items() if name in names}
    missing = [n for n in ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "max_seq_len") if n not in found]
    if missing:
        raise ConfigError(f"config.json does not say {', '.join(missing)}")
    return from_dict(GPTConfig, found, where="config.json")


def from_weights(weights: Mapping[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """The same tensors: the names are ours."""
    return dict(weights)
