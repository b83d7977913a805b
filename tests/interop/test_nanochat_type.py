"""Claims of interop/nanochat_type.py: names and sizes there and back. tests/interop/test_hf_export.py compares outputs."""

from __future__ import annotations

import pytest
from interop.exported import OPTIONS, SIZES, model

from firstlight.errors import ConfigError
from firstlight.interop import nanochat_type
from firstlight.model.config import GPTConfig

CONFIG = GPTConfig(vocab_size=330, **SIZES, softcap=7.0, rope_base=500.0, mlp_width=96)


def test_sizes_come_back() -> None:
    assert nanochat_type.from_config(nanochat_type.to_config(CONFIG)) == CONFIG


def test_no_cap_comes_back() -> None:
    config = GPTConfig(vocab_size=330, **SIZES, softcap=0.0)
    values = nanochat_type.to_config(config)
    assert values["final_logit_softcapping"] is None
    assert nanochat_type.from_config(values) == config


def test_weights_come_back_under_their_names() -> None:
    ours = model(OPTIONS["classic"])
    back = nanochat_type.from_weights(nanochat_type.to_weights(ours.state_dict(), ours.config), ours.config)
    assert list(back) == list(ours.state_dict())
    assert all(back[name] is weight or back[name].equal(weight) for name, weight in ours.state_dict().items())


def test_what_does_not_fit_is_named() -> None:
    values = nanochat_type.to_config(CONFIG) | {"attention_bias": True, "hidden_act": "gelu"}
    values["rope_parameters"] = {"rope_type": "yarn"}
    with pytest.raises(ConfigError, match="3 things are wrong") as caught:
        nanochat_type.from_config(values)
    assert "yarn" in str(caught.value)
    ours = model(OPTIONS["classic"])
    weights = nanochat_type.to_weights(ours.state_dict(), ours.config)
    weights["model.layers.0.self_attn.q_proj.bias"] = ours.lm_head.weight
    with pytest.raises(ConfigError, match=r"q_proj\.bias"):
        nanochat_type.from_weights(weights, ours.config)
