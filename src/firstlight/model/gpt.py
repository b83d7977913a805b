"""The GPT: ids to hidden states to logits.

    ids -> embedding -> norm -> n_layer blocks -> norm -> head -> soft cap -> logits
    block: x + attention(norm(x)), then x + mlp(norm(x))

With every option of `GPTConfig` off this is the preset `classic`: it gives the same logits as the `nanochat` model type
of the transformers library on the same weights. The preset `modern` turns options on (`MODERN`); each is one `if` below.
The preset `portable` (`PORTABLE`) is the `qwen3` type: a gated MLP, and neither norm behind the embedding nor soft cap.

Shapes: B rows, T tokens, D width (n_embd), H query heads, G key/value heads, K head size, V vocabulary, J = K/2,
F inner width of the MLP.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from firstlight.errors import ConfigError
from firstlight.model.attention import Kernel, attend, attend_to_own, score_bound
from firstlight.model.config import GATE_CHANNELS, GPTConfig
from firstlight.model.native.layer import AttentionWeights, attention_branch, mlp_branch, norm
from firstlight.model.precision import Embedding, Linear, rms_norm
from firstlight.model.rope import normed_and_turned, rope_tables


class Embedded(NamedTuple):
    """What `GPT.embed` looks up for `GPT.trunk`, rows of float32 tables.

    x_BTD: of the tokens. values: for each layer of ``value_embed_layers`` rows (B,T,G*K).
    before_B1D: of the token before the first one; zeros at the start of a text. Empty without smear.
    """

    x_BTD: torch.Tensor
    values: tuple[torch.Tensor, ...]
    before_B1D: torch.Tensor


class Cache(Protocol):
    """What the model needs of a key/value cache; `firstlight.infer.cache.KVCache` is one."""

    @property
    def length(self) -> int:
        """Tokens that all layers hold."""
        ...

    @property
    def last_ids(self) -> torch.Tensor | None:
        """The last id of every row, for what looks at the token before; None while the cache is empty."""
        ...

    def append(self, layer: int, k_BGTK: torch.Tensor, v_BGTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values after ``length``, and return all that this layer holds (B,G,S,K)."""
        ...

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that every layer has now written."""
        ...

    def remember(self, last_ids_B: torch.Tensor) -> None:
        """Keep the last id of every row."""
        ...


class Attention(nn.Module):
    """Causal self-attention over rotated and normalised heads."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype, has_value_embed: bool) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.head_dim
        kv_width = config.n_kv_head * config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd, compute_dtype=compute_dtype)
        self.c_k = Linear(config.n_embd, kv_width, compute_dtype=compute_dtype)
        self.c_v = Linear(config.n_embd, kv_width, compute_dtype=compute_dtype)
        self.c_proj = Linear(config.n_embd, config.n_embd, compute_dtype=compute_dtype)
        self.qk_gain = config.qk_gain
        self.value_gate = None
        if has_value_embed:
            channels = min(GATE_CHANNELS, config.n_embd)
            self.value_gate = Linear(channels, config.n_kv_head, compute_dtype=compute_dtype)

    def weights(self) -> AttentionWeights:
        """What `attention_branch` needs."""
        gate = self.value_gate
        return AttentionWeights(
            self.c_q.weight, self.c_k.weight, self.c_v.weight, self.c_proj.weight, None if gate is None else gate.weight
        )

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_TJ: torch.Tensor,
        sin_TJ: torch.Tensor,
        value_embed_BTC: torch.Tensor | None = None,
        *,
        layer: int,
        cache: Cache | None,
        kernel: Kernel | None,
    ) -> torch.Tensor:
        B, T, D = x_BTD.shape
        q_BTHK = self.c_q(x_BTD).view(B, T, self.n_head, self.head_dim)
        k_BTGK = self.c_k(x_BTD).view(B, T, self.n_kv_head, self.head_dim)
        v_BTGK = self.c_v(x_BTD).view(B, T, self.n_kv_head, self.head_dim)
        if self.value_gate is not None and value_embed_BTC is not None:
            gate_BTG1 = 2 * torch.sigmoid(self.value_gate(x_BTD[..., : self.value_gate.in_features]))[..., None]
            v_BTGK = v_BTGK + gate_BTG1 * value_embed_BTC.to(v_BTGK.dtype).view_as(v_BTGK)
        if cache is None:
            y_BTHK = attend_to_own(q_BTHK, k_BTGK, v_BTGK, cos_TJ, sin_TJ, gain=self.qk_gain, kernel=kernel)
            return self.c_proj(y_BTHK.reshape(B, T, D))
        q_BHTK = normed_and_turned(q_BTHK, cos_TJ, sin_TJ, gain=self.qk_gain)
        k_BGTK = normed_and_turned(k_BTGK, cos_TJ, sin_TJ, gain=self.qk_gain)
        num_past = cache.length
        k_BGSK, v_BGSK = cache.append(layer, k_BGTK, v_BTGK.transpose(1, 2))
        bound = score_bound(self.qk_gain, head_dim=self.head_dim)
        kernel = None if kernel == "native" else kernel
        y_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, num_past=num_past, score_bound=bound, kernel=kernel)
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two matrices around a squared ReLU, usually four times as wide inside (So et al. 2021, Primer, arXiv 2109.08668)."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_inner, compute_dtype=compute_dtype)
        self.c_proj = Linear(config.mlp_inner, config.n_embd, compute_dtype=compute_dtype)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.c_proj(functional.relu(self.c_fc(x_BTD)).square())


class GatedMLP(nn.Module):
    """SwiGLU: what ``c_fc`` brings, times a gate that depends on the token as well (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.c_gate = Linear(config.n_embd, config.mlp_inner, compute_dtype=compute_dtype)
        self.c_fc = Linear(config.n_embd, config.mlp_inner, compute_dtype=compute_dtype)
        self.c_proj = Linear(config.mlp_inner, config.n_embd, compute_dtype=compute_dtype)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.c_proj(functional.silu(self.c_gate(x_BTD)) * self.c_fc(x_BTD))


class Block(nn.Module):
    """One layer: tokens exchange information (attention), then each is worked on alone (MLP)."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype, has_value_embed: bool = False) -> None:
        super().__init__()
        self.attn = Attention(config, compute_dtype=compute_dtype, has_value_embed=has_value_embed)
        self.mlp = (GatedMLP if config.mlp == "swiglu" else MLP)(config, compute_dtype=compute_dtype)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_TJ: torch.Tensor,
        sin_TJ: torch.Tensor,
        value_embed_BTC: torch.Tensor | None = None,
        *,
        layer: int,
        cache: Cache | None,
        kernel: Kernel | None,
        written_out: bool = False,
    ) -> torch.Tensor:
        if written_out:
            attn, mlp = self.attn, self.mlp
            x_BTD = attention_branch(
                x_BTD, attn.weights(), cos_TJ, sin_TJ, value_embed_BTC, head_dim=attn.head_dim, gain=attn.qk_gain
            )
            gate_FD = mlp.c_gate.weight if isinstance(mlp, GatedMLP) else None
            return mlp_branch(x_BTD, mlp.c_fc.weight, mlp.c_proj.weight, gate_FD)
        x_BTD = x_BTD + self.attn(
            rms_norm(x_BTD), cos_TJ, sin_TJ, value_embed_BTC, layer=layer, cache=cache, kernel=kernel
        )
        return x_BTD + self.mlp(rms_norm(x_BTD))


class Transformer(nn.Module):
    """Embedding and blocks; holds them under the names that GPT-2 gave them and does nothing itself."""

    def __init__(self, config: GPTConfig, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        with_values = config.value_embed_layers
        kv_width = config.n_kv_head * config.head_dim
        self.value_embeds = nn.ModuleDict({str(i): Embedding(config.vocab_size, kv_width) for i in with_values})
        self.h = nn.ModuleList(
            Block(config, compute_dtype=compute_dtype, has_value_embed=i in with_values) for i in range(config.n_layer)
        )


class GPT(nn.Module):
    """The model. Its weights are float32 and all NaN until `firstlight.model.init` or a checkpoint fills them.

    compute_dtype: dtype of matmuls and of the hidden states.
    checkpoint_activations: keep only each block's input for the backward pass and compute the rest again there
        (Chen et al. 2016, arXiv 1604.06174): about a third more work, a fraction of the memory, the same gradients.
    written_out: whole rows go through `firstlight.model.native.layer`, blocks with their gradients written out: float32 on a
        CPU, not compiled, and where `why_not_native_layers` has nothing to say. No submodule of a block is called then.
    attention_kernel: one kernel; None leaves it to `choose_kernel` in attention.py. Behind a cache ``native`` is None.
    """

    rope_cos: torch.Tensor
    rope_sin: torch.Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.checkpoint_activations = False
        self.written_out = False
        self.attention_kernel: Kernel | None = None
        self.transformer = Transformer(config, compute_dtype=compute_dtype)
        self.lm_head = Linear(config.n_embd, config.vocab_size, compute_dtype=compute_dtype)
        # A learned number is all NaN at first, as every weight is (see `Linear`).
        unset = torch.full((config.n_layer,), float("nan"), dtype=torch.float32)
        self.residual_scales = nn.Parameter(unset.clone()) if config.residual_scales else None
        self.x0_scales = nn.Parameter(unset.clone()) if config.residual_scales else None
        self.smear_gate = None
        self.smear_scale = None
        if config.smear:
            self.smear_gate = Linear(min(GATE_CHANNELS, config.n_embd), 1, compute_dtype=compute_dtype)
            self.smear_scale = nn.Parameter(unset[:1].clone())
        self.backout_scale = nn.Parameter(unset[:1].clone()) if config.backout else None
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

    def embed(self, inputs_BT: torch.Tensor, cache: Cache | None = None) -> Embedded:
        """All that is looked up by id, (B,T) int64 -> `Embedded`. With a cache, its last ids are those before.

        Apart from `trunk` and never compiled: on a CPU its backward pass is deterministic as it stands, while compiled
        code adds rows with atomics, in an order that changes from run to run.
        """
        wte = self.transformer.wte
        before_B = None if cache is None else cache.last_ids
        x_BTD = wte(inputs_BT)
        values = tuple(table(inputs_BT) for table in self.transformer.value_embeds.values())
        if not self.config.smear:
            before_B1D = x_BTD[:, :0]
        elif before_B is None:
            before_B1D = torch.zeros_like(x_BTD[:, :1])
        else:
            before_B1D = wte(before_B[:, None])
        if cache is not None:
            cache.remember(inputs_BT[:, -1])
        return Embedded(x_BTD, values, before_B1D)

    def trunk(self, embedded: Embedded, cache: Cache | None = None) -> torch.Tensor:
        """Blocks and final norm, `Embedded` -> (B,T,D). This is what a trainer compiles.

        With a cache the tokens continue what the cache holds, and their keys and values are added to it.

        Raises ConfigError where the context would be longer than max_seq_len.
        """
        written_out = self.written_out and cache is None
        x_BTD = self._stream(embedded.x_BTD, written_out=written_out)
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
        if self.smear_gate is not None and self.smear_scale is not None:
            gate_BT1 = torch.sigmoid(self.smear_gate(x_BTD[..., : self.smear_gate.in_features]))
            before_B1D = self._stream(embedded.before_B1D, written_out=written_out)
            shifted_BTD = torch.cat((before_B1D, x_BTD[:, :-1]), dim=1)
            x_BTD = x_BTD + (self.smear_scale.to(x_BTD.dtype) * gate_BT1) * shifted_BTD
        x0_BTD = x_BTD
        middle_BTD = None
        value_of = dict(zip(self.config.value_embed_layers, embedded.values, strict=True))
        for layer, block in enumerate(self.transformer.h):
            if self.residual_scales is not None and self.x0_scales is not None:
                a, b = self.residual_scales[layer].to(x_BTD.dtype), self.x0_scales[layer].to(x_BTD.dtype)
                x_BTD = a * x_BTD + b * x0_BTD
            arguments = (x_BTD, cos_TJ, sin_TJ, value_of.get(layer))
            options = {"layer": layer, "cache": cache, "kernel": self.attention_kernel, "written_out": written_out}
            if recompute:
                # No dropout, so there is no random state to keep.
                x_BTD = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
            else:
                x_BTD = block(*arguments, **options)
            if self.backout_scale is not None and layer == self.config.n_layer // 2:
                middle_BTD = x_BTD
        if cache is not None:
            cache.advance(end - start)
        if middle_BTD is not None and self.backout_scale is not None:
            x_BTD = x_BTD - self.backout_scale.to(x_BTD.dtype) * middle_BTD
        return norm(x_BTD) if written_out else rms_norm(x_BTD)

    def _stream(self, x_BTD: torch.Tensor, *, written_out: bool) -> torch.Tensor:
        """Rows of the embedding as the first block reads them, in the compute dtype."""
        if self.config.embed_norm:
            x_BTD = norm(x_BTD) if written_out else rms_norm(x_BTD)
        return x_BTD.to(self.compute_dtype)

    def hidden(self, inputs_BT: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """What the head reads, (B,T) int64 -> (B,T,D). Makes no logits, so a loss can take them in chunks of rows."""
        return self.trunk(self.embed(inputs_BT, cache), cache)

    def logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Head and soft cap, (..., D) -> (..., V) float32, within +-softcap; without bounds where that is 0.

        The cap (Gemma 2, arXiv 2408.00118) is taken in float32: bfloat16 has 8 bits, and tanh near 1 needs more.
        """
        z_BTV = self.lm_head(x_BTD).float()
        if self.config.softcap == 0:
            return z_BTV
        return self.config.softcap * torch.tanh(z_BTV / self.config.softcap)

    def forward(self, inputs_BT: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Logits of the next token at every position, (B,T) int64 -> (B,T,V) float32."""
        return self.logits(self.hidden(inputs_BT, cache))
