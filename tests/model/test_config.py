"""Sizes and options: what follows from depth, and which mistakes are named."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.model.config import MODERN, GPTConfig


def test_modern_is_classic_with_options() -> None:
    classic = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=64)
    modern = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=64, preset="modern")
    differing = {name for name in vars(classic) if getattr(classic, name) != getattr(modern, name)}
    assert differing == set(MODERN)


@pytest.mark.parametrize(
    ("n_layer", "every", "layers"), [(4, 2, (1, 3)), (5, 2, (0, 2, 4)), (3, 1, (0, 1, 2)), (4, 0, ()), (2, 9, (1,))]
)
def test_value_embeddings_are_counted_from_the_last_layer(n_layer: int, every: int, layers: tuple[int, ...]) -> None:
    config = GPTConfig(64, n_layer, 1, 1, 64, 8, value_embed_every=every)
    assert config.value_embed_layers == layers


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        GPTConfig(64, 2, 1, 1, 64, 8, value_embed_every=-1, qk_gain=0.0)
    for name in ("value_embed_every -1", "qk_gain 0.0"):
        assert name in str(caught.value)
