"""Claims of interop/remote_type.py: every option comes back, and the code file is there."""

from __future__ import annotations

import json

import pytest
from interop.exported import OPTIONS, model

from firstlight.errors import ConfigError
from firstlight.interop import remote_type


@pytest.mark.parametrize("preset", OPTIONS)
def test_all_options_come_back(preset: str) -> None:
    config = model(OPTIONS[preset]).config
    assert remote_type.from_config(json.loads(json.dumps(remote_type.to_config(config)))) == config


def test_missing_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="n_layer"):
        remote_type.from_config({"model_type": "firstlight", "vocab_size": 3})


def test_the_code_lies_in_the_package() -> None:
    text = remote_type.CODE_FILE.read_text(encoding="utf-8")
    assert "class FirstlightForCausalLM" in text
    assert "import firstlight" not in text
    assert "from firstlight" not in text
