"""Sizes and options of a model, and the dial that derives them from depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from firstlight.errors import ConfigError, Problems

Preset = Literal["classic", "modern", "portable"]

MODERN: dict[str, Any] = {"value_embed_every": 2}
"""Options of `GPTConfig` that paid for their time where they were measured. The others did not (lab/LOG.md)."""

PORTABLE: dict[str, Any] = {"mlp": "swiglu", "embed_norm": False, "softcap": 0.0}
"""Options that other programs have: with them a model is one of the type `qwen3`. `mlp_width` is added by the width."""

GATE_CHANNELS = 16
"""Leading numbers of a hidden state that the small gates read."""


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a model. Everything about its architecture follows from these.

    n_kv_head: key/value heads, each shared by n_head / n_kv_head query heads (Ainslie et al. 2023, arXiv 2305.13245).
    max_seq_len: positions that the rotary tables have, and so the longest context.
    softcap: logits are ``softcap * tanh(z / softcap)``; 15 is the seed's. 0 is no cap.
    mlp: ``relu2`` is two matrices around a squared ReLU; ``swiglu`` three, of which one opens and closes what another
        brings: ``c_proj(silu(c_gate x) * c_fc x)`` (Shazeer 2020, arXiv 2002.05202).
    mlp_width: numbers of a token inside the MLP; 0 is 4 * n_embd. `mlp_inner` is the number itself.
    embed_norm: the embedding is normed before the first block.

    Options, all off in `classic`; docs/model.md says what each is for and lab/LOG.md what it brought:
    value_embed_every: each n-th layer, counted from the last, adds to its values a row that is looked up by the token's
        id, through a gate for each head (Zhou et al. 2024, arXiv 2410.17897, as modded-nanogpt has it). 0 is none.
    residual_scales: each block reads ``a x + b x0`` with two learned numbers a layer, x0 being the embedding
        (modded-nanogpt, 2024).
    smear: the embedding of the token before is mixed in through a learned gate (modded-nanogpt, 2025).
    backout: a learned part of the hidden state in the middle is taken out before the head (modded-nanogpt, 2025).
    qk_gain: factor on normed queries and on keys; above 1 attention can be sharper.

    Raises ConfigError that names every size that cannot work.
    """

    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    max_seq_len: int
    rope_base: float = 10000.0
    softcap: float = 15.0
    mlp: Literal["relu2", "swiglu"] = "relu2"
    mlp_width: int = 0
    embed_norm: bool = True
    value_embed_every: int = 0
    residual_scales: bool = False
    smear: bool = False
    backout: bool = False
    qk_gain: float = 1.0

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                problems.add(f"{name} {value!r} must be a whole number above zero")
        if not isinstance(self.value_embed_every, int) or self.value_embed_every < 0:
            problems.add(f"value_embed_every {self.value_embed_every!r} must be a whole number, zero or above")
        for name in ("rope_base", "qk_gain"):
            if not getattr(self, name) > 0:
                problems.add(f"{name} {getattr(self, name)} must be above zero")
        if not 0 <= self.softcap < math.inf:
            problems.add(f"softcap {self.softcap} must be zero (no cap) or above, and finite")
        if self.mlp not in ("relu2", "swiglu"):
            problems.add(f"mlp {self.mlp!r} is not known", hint="relu2 or swiglu")
        if not isinstance(self.mlp_width, int) or self.mlp_width < 0:
            problems.add(f"mlp_width {self.mlp_width!r} must be a whole number, zero (4 * n_embd) or above")
        problems.raise_if_any()
        if self.n_embd % self.n_head:
            divisors = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0 and (self.n_embd // n) % 2 == 0]
            nearest = sorted(divisors, key=lambda n: abs(n - self.n_head))[:2]
            problems.add(
                f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads",
                hint=f"n_head {' or '.join(map(str, sorted(nearest)))} would" if nearest else "make n_embd even",
            )
        elif self.head_dim % 2:
            problems.add(
                f"head size {self.head_dim} (n_embd {self.n_embd} / n_head {self.n_head}) is odd",
                hint="rotary embedding turns pairs of numbers: the head size must be even",
            )
        if self.n_head % self.n_kv_head:
            divisors = [n for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            problems.add(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}",
                hint=f"n_kv_head may be {', '.join(map(str, divisors))}",
            )
        problems.raise_if_any()

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_inner(self) -> int:
        """Width inside the MLP.

        >>> GPTConfig(64, 5, 1, 1, 64, 8).mlp_inner, GPTConfig(64, 5, 1, 1, 64, 8, mlp="swiglu", mlp_width=192).mlp_inner
        (256, 192)
        """
        return self.mlp_width or 4 * self.n_embd

    @property
    def num_mlp_matrices(self) -> int:
        """Matrices of n_embd by mlp_inner (or the other way round) in a layer's MLP."""
        return 3 if self.mlp == "swiglu" else 2

    @property
    def value_embed_layers(self) -> tuple[int, ...]:
        """Layers that have a value embedding.

        >>> GPTConfig(64, 5, 1, 1, 64, 8, value_embed_every=2).value_embed_layers
        (0, 2, 4)
        """
        every = self.value_embed_every
        return tuple(i for i in range(self.n_layer) if every and (self.n_layer - 1 - i) % every == 0)

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int,
        max_seq_len: int,
        head_dim: int = 128,
        n_kv_head: int | None = None,
        preset: Preset = "classic",
    ) -> GPTConfig:
        """The dial: ``n_layer = depth``, ``n_embd = 64 * depth``, ``n_head = max(1, ceil(n_embd / head_dim))``.

        Some odd depths (5, 9, 11, 13, ...) have a width that this head count does not divide. They get the next larger
        count that gives whole, even heads: depth 5 has 4 heads of 80 instead of 3 of 106.67.

        >>> GPTConfig.from_depth(12, vocab_size=32000, max_seq_len=2048).n_head
        6
        """
        if depth < 1:
            raise ConfigError(f"depth {depth} is too small", hint="the smallest depth is 1")
        if head_dim < 2:
            raise ConfigError(f"head size {head_dim} is too small", hint="64 and 128 are usual")
        n_embd = 64 * depth
        n_head = max(1, -(-n_embd // head_dim))
        while n_embd % n_head or (n_embd // n_head) % 2:
            n_head += 1
            if n_head > n_embd // 2:
                raise ConfigError(f"head size {head_dim} is too small for width {n_embd}", hint="64 and 128 are usual")
        return cls(
            vocab_size=vocab_size,
            n_layer=depth,
            n_head=n_head,
            n_kv_head=n_head if n_kv_head is None else n_kv_head,
            n_embd=n_embd,
            max_seq_len=max_seq_len,
            **preset_options(preset, n_embd=n_embd),
        )


def preset_options(preset: Preset, *, n_embd: int) -> dict[str, Any]:
    """What a preset sets of `GPTConfig` beyond its sizes.

    The inner width of `portable` is the multiple of 64 nearest to 8/3 of the width: three matrices then have about as many
    parameters as the two of four times the width.

    >>> preset_options("portable", n_embd=768)["mlp_width"]
    2048
    """
    if preset == "portable":
        return PORTABLE | {"mlp_width": 64 * max(1, round(n_embd / 24))}
    return MODERN if preset == "modern" else {}
