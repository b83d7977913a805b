"""Claims of interop/qwen3_type.py: names, sizes, halves of heads. tests/interop/test_hf_export.py compares outputs."""

from __future__ import annotations

import pytest
import torch
from interop.exported import OPTIONS, model

from firstlight.errors import ConfigError
from firstlight.interop import qwen3_type

OURS = model(OPTIONS["portable"])


def test_sizes_and_weights_come_back() -> None:
    assert qwen3_type.from_config(qwen3_type.to_config(OURS.config)) == OURS.config
    there = qwen3_type.to_weights(OURS.state_dict(), OURS.config)
    back = qwen3_type.from_weights(there, OURS.config)
    assert set(back) == set(OURS.state_dict())
    assert all(back[name].equal(weight) for name, weight in OURS.state_dict().items())


def test_the_halves_of_each_head_are_exchanged() -> None:
    # Heads of 16 rows: row 3 of head 1 (16 + 3) goes to the other half, 16 + 11.
    name = "model.layers.2.self_attn.q_proj.weight"
    there = qwen3_type.to_weights(OURS.state_dict(), OURS.config)[name]
    assert torch.equal(there[16 + 11], OURS.state_dict()["transformer.h.2.attn.c_q.weight"][16 + 3])


def test_learned_norms_and_biases_are_refused_together() -> None:
    there = qwen3_type.to_weights(OURS.state_dict(), OURS.config)
    there["model.layers.0.self_attn.q_norm.weight"] *= 1.5
    there["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    with pytest.raises(ConfigError) as caught:
        qwen3_type.from_weights(there, OURS.config)
    assert "q_norm" in str(caught.value)
    assert "q_proj.bias" in str(caught.value)
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        qwen3_type.from_config(qwen3_type.to_config(OURS.config) | {"tie_word_embeddings": True})
