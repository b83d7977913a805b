"""Sizes and options: what follows from depth, and which mistakes are named."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.model.config import MODERN, PORTABLE, GPTConfig


def test_modern_is_classic_with_options() -> None:
    classic = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=64)
    modern = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=64, preset="modern")
    differing = {name for name in vars(classic) if getattr(classic, name) != getattr(modern, name)}
    assert differing == set(MODERN)


def test_portable_is_classic_with_options() -> None:
    classic = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=64)
    portable = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=64, preset="portable")
    differing = {name for name in vars(classic) if getattr(classic, name) != getattr(portable, name)}
    assert differing == {*PORTABLE, "mlp_width"} == {"mlp", "embed_norm", "softcap", "mlp_width"}
    assert (portable.mlp, portable.embed_norm, portable.softcap) == ("swiglu", False, 0.0)


@pytest.mark.parametrize(
    ("depth", "inner"), [(1, 192), (2, 320), (3, 512), (4, 704), (5, 832), (12, 2048), (20, 3392), (32, 5440)]
)
def test_the_inner_width_of_portable_is_the_multiple_of_64_nearest_to_eight_thirds(depth: int, inner: int) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=512, max_seq_len=64, preset="portable")
    assert config.mlp_inner == inner
    assert abs(inner - 8 / 3 * config.n_embd) < 32
    # Three matrices instead of two of four times the width: about as many numbers.
    assert config.num_mlp_matrices * inner == pytest.approx(8 * config.n_embd, rel=0.13)


def test_an_inner_width_of_zero_is_four_times_the_width() -> None:
    assert GPTConfig(64, 2, 1, 1, 48, 8).mlp_inner == 192
    assert GPTConfig(64, 2, 1, 1, 48, 8, mlp="swiglu").mlp_inner == 192
    assert GPTConfig(64, 2, 1, 1, 48, 8, mlp_width=50).mlp_inner == 50


@pytest.mark.parametrize(
    ("n_layer", "every", "layers"), [(4, 2, (1, 3)), (5, 2, (0, 2, 4)), (3, 1, (0, 1, 2)), (4, 0, ()), (2, 9, (1,))]
)
def test_value_embeddings_are_counted_from_the_last_layer(n_layer: int, every: int, layers: tuple[int, ...]) -> None:
    config = GPTConfig(64, n_layer, 1, 1, 64, 8, value_embed_every=every)
    assert config.value_embed_layers == layers


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        GPTConfig(
            64,
            2,
            1,
            1,
            64,
            8,
            value_embed_every=-1,
            qk_gain=0.0,
            softcap=-1.0,
            mlp="gelu",
            mlp_width=-2,  # pyrefly: ignore
        )
    for name in ("value_embed_every -1", "qk_gain 0.0", "softcap -1.0", "mlp 'gelu'", "mlp_width -2"):
        assert name in str(caught.value)


@pytest.mark.parametrize("softcap", [float("nan"), float("inf")])
def test_a_cap_that_is_no_number_is_refused(softcap: float) -> None:
    with pytest.raises(ConfigError, match="softcap"):
        GPTConfig(64, 2, 1, 1, 64, 8, softcap=softcap)
