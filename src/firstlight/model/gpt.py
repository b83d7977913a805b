"""The GPT: ids to hidden states to logits. Preset `classic`.

    ids -> embedding -> norm -> n_layer blocks -> norm -> head -> soft cap -> logits
    block: x + attention(norm(x)), then x + mlp(norm(x))

It gives the same logits as the `nanochat` model type of the transformers library on the same weights.

Shapes: B rows, T tokens, D width (n_embd), H query heads, G key/value heads, K head size, V vocabulary, J = K/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from firstlight.errors import ConfigError, Problems
from firstlight.model.attention import Kernel, attend
from firstlight.model.precision import Embedding, Linear, rms_norm
from firstlight.model.rope import rope_tables, rotate


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a model. Everything about its architecture follows from these.

    n_kv_head: key/value heads, each shared by n_head / n_kv_head query heads (Ainslie et al. 2023, arXiv 2305.13245).
    max_seq_len: positions that the rotary tables have, and so the longest context.
    softcap: logits are ``softcap * tanh(z / softcap)``; 15 is the seed's.

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

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                problems.add(f"{name} {value!r} must be a whole number above zero")
        for name in ("rope_base", "softcap"):
            if not getattr(self, name) > 0:
                problems.add(f"{name} {getattr(self, name)} must be above zero")
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

    @classmethod
    def from_depth(
        cls, depth: int, *, vocab_size: int, max_seq_len: int, head_dim: int = 128, n_kv_head: int | None = None
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
        )


class Cache(Protocol):
    """What the model needs of a key/value cache; `firstlight.infer.cache.KVCache` is one."""

    @property
    def length(self) -> int:
        """Tokens that all layers hold."""
        ...

    def append(self, layer: int, k_BGTK: torch.Tensor, v_BGTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values after ``length``, and return all that this layer holds (B,G,S,K)."""
        ...

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that every layer has now written."""
        ...


class Attention(nn.Module):
    """Causal self-attention over rotated and normalised heads."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.head_dim
        kv_width = config.n_kv_head * config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd, compute_dtype=compute_dtype)
        self.c_k = Linear(config.n_embd, kv_width, compute_dtype=compute_dtype)
        self.c_v = Linear(config.n_embd, kv_width, compute_dtype=compute_dtype)
        self.c_proj = Linear(config.n_embd, config.n_embd, compute_dtype=compute_dtype)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_TJ: torch.Tensor,
        sin_TJ: torch.Tensor,
        *,
        layer: int,
        cache: Cache | None,
        kernel: Kernel | None,
    ) -> torch.Tensor:
        B, T, D = x_BTD.shape
        q_BTHK = self.c_q(x_BTD).view(B, T, self.n_head, self.head_dim)
        k_BTGK = self.c_k(x_BTD).view(B, T, self.n_kv_head, self.head_dim)
        v_BTGK = self.c_v(x_BTD).view(B, T, self.n_kv_head, self.head_dim)
        # Norm of queries and keys keeps the scores bounded (Henry et al. 2020, arXiv 2010.04245). It comes after the
        # rotation as in the seed; a rotation keeps lengths, so the order changes rounding only.
        q_BHTK = rms_norm(rotate(q_BTHK, cos_TJ, sin_TJ)).to(x_BTD.dtype).transpose(1, 2)
        k_BGTK = rms_norm(rotate(k_BTGK, cos_TJ, sin_TJ)).to(x_BTD.dtype).transpose(1, 2)
        v_BGTK = v_BTGK.transpose(1, 2)
        num_past = 0
        if cache is not None:
            num_past = cache.length
            k_BGTK, v_BGTK = cache.append(layer, k_BGTK, v_BGTK)
        y_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, num_past=num_past, kernel=kernel)
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two matrices around a squared ReLU, four times as wide inside (So et al. 2021, Primer, arXiv 2109.08668)."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, compute_dtype=compute_dtype)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, compute_dtype=compute_dtype)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.c_proj(functional.relu(self.c_fc(x_BTD)).square())


class Block(nn.Module):
    """One layer: tokens exchange information (attention), then each is worked on alone (MLP)."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.attn = Attention(config, compute_dtype=compute_dtype)
        self.mlp = MLP(config, compute_dtype=compute_dtype)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_TJ: torch.Tensor,
        sin_TJ: torch.Tensor,
        *,
        layer: int,
        cache: Cache | None,
        kernel: Kernel | None,
    ) -> torch.Tensor:
        x_BTD = x_BTD + self.attn(rms_norm(x_BTD), cos_TJ, sin_TJ, layer=layer, cache=cache, kernel=kernel)
        return x_BTD + self.mlp(rms_norm(x_BTD))


class Transformer(nn.Module):
    """Embedding and blocks; holds them under the names that GPT-2 gave them and does nothing itself."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, compute_dtype=compute_dtype) for _ in range(config.n_layer))


class GPT(nn.Module):
    """The model. Its weights are float32 and all NaN until `firstlight.model.init` or a checkpoint fills them.

    compute_dtype: dtype of matmuls and of the hidden states.
    checkpoint_activations: keep only each block's input for the backward pass and compute the rest again there
        (Chen et al. 2016, arXiv 1604.06174): about a third more work, a fraction of the memory, the same gradients.
    attention_kernel: one kernel, for tests and measurements; None leaves it to `choose_kernel` in attention.py.
    """

    rope_cos: torch.Tensor
    rope_sin: torch.Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.checkpoint_activations = False
        self.attention_kernel: Kernel | None = None
        self.transformer = Transformer(config, compute_dtype=compute_dtype)
        self.lm_head = Linear(config.n_embd, config.vocab_size, compute_dtype=compute_dtype)
        # Not saved: they follow from the config.
        shape = (config.max_seq_len, config.head_dim // 2)
        self.register_buffer("rope_cos", torch.empty(shape), persistent=False)
        self.register_buffer("rope_sin", torch.empty(shape), persistent=False)
        self.reset_rope()

    def reset_rope(self) -> None:
        """Compute the rotary tables into their buffers; needed after ``to_empty``, which leaves them as garbage."""
        if self.rope_cos.is_meta:
            return
        cos_TJ, sin_TJ = rope_tables(self.config.max_seq_len, self.config.head_dim, base=self.config.rope_base)
        self.rope_cos.copy_(cos_TJ)
        self.rope_sin.copy_(sin_TJ)

    def embed(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        """Embedding and norm, (B,T) int64 -> (B,T,D).

        Apart from `trunk` and never compiled: on a CPU its backward pass is deterministic as it stands, while compiled
        code adds rows with atomics, in an order that changes from run to run.
        """
        return rms_norm(self.transformer.wte(inputs_BT)).to(self.compute_dtype)

    def trunk(self, x_BTD: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Blocks and final norm, (B,T,D) -> (B,T,D). This is what a trainer compiles.

        With a cache the tokens continue what the cache holds, and their keys and values are added to it.

        Raises ConfigError where the context would be longer than max_seq_len.
        """
        start = 0 if cache is None else cache.length
        end = start + x_BTD.shape[1]
        if end > self.config.max_seq_len:
            raise ConfigError(
                f"a context of {end} tokens" + (f" ({start} cached and {end - start} new)" if start else "")
                + f" is longer than the model's max_seq_len {self.config.max_seq_len}",
                hint="give fewer tokens, or train with a larger --max-seq-len",
            )  # fmt: skip
        cos_TJ, sin_TJ = self.rope_cos[start:end], self.rope_sin[start:end]
        recompute = self.checkpoint_activations and cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.transformer.h):
            options = {"layer": layer, "cache": cache, "kernel": self.attention_kernel}
            if recompute:
                # No dropout, so there is no random state to keep.
                x_BTD = checkpoint(
                    block, x_BTD, cos_TJ, sin_TJ, use_reentrant=False, preserve_rng_state=False, **options
                )
            else:
                x_BTD = block(x_BTD, cos_TJ, sin_TJ, **options)
        if cache is not None:
            cache.advance(end - start)
        return rms_norm(x_BTD)

    def hidden(self, inputs_BT: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """What the head reads, (B,T) int64 -> (B,T,D). Makes no logits, so a loss can take them in chunks of rows."""
        return self.trunk(self.embed(inputs_BT), cache)

    def logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Head and soft cap, (..., D) -> (..., V) float32, within +-softcap.

        The cap (Gemma 2, arXiv 2408.00118) is taken in float32: bfloat16 has 8 bits, and tanh near 1 needs more.
        """
        z_BTV = self.lm_head(x_BTD).float()
        return self.config.softcap * torch.tanh(z_BTV / self.config.softcap)

    def forward(self, inputs_BT: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Logits of the next token at every position, (B,T) int64 -> (B,T,V) float32."""
        return self.logits(self.hidden(inputs_BT, cache))
