"""The GPT of firstlight for the transformers library, in one file that needs torch and transformers (5.24 or newer) only.

`firstlight export hf` puts a copy of this file beside the weights; `AutoModelForCausalLM.from_pretrained(DIR,
trust_remote_code=True)` then finds it there. The names of the weights are those of firstlight's checkpoints.

Shapes: B rows, T new tokens, S tokens with those in the cache, D width, H query heads, G key/value heads, K head size,
J = K/2, V vocabulary. One letter a dimension at the end of a tensor's name; 1 is a dimension of size one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

NORM_EPS = 1e-6
GATE_CHANNELS = 16

logger = logging.get_logger(__name__)


class FirstlightConfig(PreTrainedConfig):
    """Sizes and options of the model, under the names that firstlight has for them.

    softcap: logits are ``softcap * tanh(z / softcap)``; 0 is no cap. mlp: ``relu2`` or ``swiglu``. mlp_width: 0 is
    4 * n_embd. embed_norm: the embedding is normed before the first block. value_embed_every: each n-th layer, counted
    from the last, adds a row looked up by the token's id to its values. residual_scales: each block reads
    ``a x + b x0``. smear: the embedding of the token before is mixed in. backout: a part of the hidden state in the
    middle is taken out before the head. qk_gain: factor on normed queries and keys.
    """

    model_type = "firstlight"
    keys_to_ignore_at_inference: ClassVar = ["cache"]
    attribute_map: ClassVar = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "max_position_embeddings": "max_seq_len",
    }

    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    max_seq_len: int = 2048
    rope_base: float = 10000.0
    softcap: float = 15.0
    mlp: str = "relu2"
    mlp_width: int = 0
    embed_norm: bool = True
    value_embed_every: int = 0
    residual_scales: bool = False
    smear: bool = False
    backout: bool = False
    qk_gain: float = 1.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def value_embed_layers(self) -> tuple[int, ...]:
        every = self.value_embed_every
        return tuple(i for i in range(self.n_layer) if every and (self.n_layer - 1 - i) % every == 0)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def normed_and_turned(
    x_BTHK: torch.Tensor, cos_BT1J: torch.Tensor, sin_BT1J: torch.Tensor, gain: float
) -> torch.Tensor:
    """Heads divided by their root mean square and turned clockwise in pairs (j, j + K/2): (B,T,H,K) -> (B,H,T,K)."""
    n_BTHK = rms_norm(x_BTHK.float()) * gain
    a, b = n_BTHK.chunk(2, dim=-1)
    y_BTHK = torch.cat((a * cos_BT1J + b * sin_BT1J, b * cos_BT1J - a * sin_BT1J), dim=-1)
    return y_BTHK.to(x_BTHK.dtype).transpose(1, 2)


class FirstlightAttention(nn.Module):
    """Causal self-attention over normed and rotated heads."""

    def __init__(self, config: FirstlightConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.qk_gain = config.qk_gain
        kv_width = config.n_kv_head * config.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_width, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_width, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.value_gate = None
        if layer in config.value_embed_layers:
            self.value_gate = nn.Linear(min(GATE_CHANNELS, config.n_embd), config.n_kv_head, bias=False)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_BT1J: torch.Tensor,
        sin_BT1J: torch.Tensor,
        value_BTC: torch.Tensor | None,
        mask: torch.Tensor | None,
        cache: Any,
        kept_BTD: torch.Tensor | None,
    ) -> torch.Tensor:
        """kept_BTD: rows that the cache is to hold beside the keys (see `FirstlightForCausalLM._smeared`)."""
        B, T, D = x_BTD.shape
        q_BTHK = self.c_q(x_BTD).view(B, T, self.n_head, self.head_dim)
        k_BTGK = self.c_k(x_BTD).view(B, T, self.n_kv_head, self.head_dim)
        v_BTGK = self.c_v(x_BTD).view(B, T, self.n_kv_head, self.head_dim)
        if self.value_gate is not None and value_BTC is not None:
            gate_BTG1 = 2 * torch.sigmoid(self.value_gate(x_BTD[..., : self.value_gate.in_features]))[..., None]
            v_BTGK = v_BTGK + gate_BTG1 * value_BTC.to(v_BTGK.dtype).view_as(v_BTGK)
        q_BHTK = normed_and_turned(q_BTHK, cos_BT1J, sin_BT1J, self.qk_gain)
        k_BGSK = normed_and_turned(k_BTGK, cos_BT1J, sin_BT1J, self.qk_gain)
        v_BGSK = v_BTGK.transpose(1, 2)
        if cache is not None:
            if kept_BTD is not None:
                k_BGSK = torch.cat((k_BGSK, kept_BTD.view(B, T, self.n_kv_head, -1).transpose(1, 2)), dim=-1)
            k_BGSK, v_BGSK = cache.update(k_BGSK, v_BGSK, self.layer)
            k_BGSK = k_BGSK[..., : self.head_dim]
        y_BHTK = functional.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=self.n_head != self.n_kv_head,
        )
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


class FirstlightMLP(nn.Module):
    """Two matrices around a squared ReLU, or three of which one is a gate (SwiGLU)."""

    def __init__(self, config: FirstlightConfig) -> None:
        super().__init__()
        width = config.mlp_width or 4 * config.n_embd
        self.c_gate = nn.Linear(config.n_embd, width, bias=False) if config.mlp == "swiglu" else None
        self.c_fc = nn.Linear(config.n_embd, width, bias=False)
        self.c_proj = nn.Linear(width, config.n_embd, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if self.c_gate is not None:
            return self.c_proj(functional.silu(self.c_gate(x_BTD)) * self.c_fc(x_BTD))
        return self.c_proj(functional.relu(self.c_fc(x_BTD)).square())


class FirstlightBlock(GradientCheckpointingLayer):
    """One layer: attention, then the MLP, each beside the residual stream."""

    def __init__(self, config: FirstlightConfig, layer: int) -> None:
        super().__init__()
        self.attn = FirstlightAttention(config, layer)
        self.mlp = FirstlightMLP(config)

    def forward(self, x_BTD: torch.Tensor, *arguments: Any) -> torch.Tensor:
        x_BTD = x_BTD + self.attn(rms_norm(x_BTD), *arguments)
        return x_BTD + self.mlp(rms_norm(x_BTD))


class FirstlightTransformer(nn.Module):
    """Embeddings and blocks; holds them and does nothing itself."""

    def __init__(self, config: FirstlightConfig) -> None:
        super().__init__()
        kv_width = config.n_kv_head * config.head_dim
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        layers = config.value_embed_layers
        self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(config.vocab_size, kv_width) for i in layers})
        self.h = nn.ModuleList(FirstlightBlock(config, i) for i in range(config.n_layer))


class FirstlightForCausalLM(PreTrainedModel, GenerationMixin):
    """The whole model. Padding at either side is possible with an attention mask."""

    config_class = FirstlightConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FirstlightBlock"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: FirstlightConfig) -> None:
        super().__init__(config)
        self.transformer = FirstlightTransformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.residual_scales = self.x0_scales = self.smear_gate = self.smear_scale = self.backout_scale = None
        if config.residual_scales:
            self.residual_scales = nn.Parameter(torch.ones(config.n_layer))
            self.x0_scales = nn.Parameter(torch.zeros(config.n_layer))
        if config.smear:
            self.smear_gate = nn.Linear(min(GATE_CHANNELS, config.n_embd), 1, bias=False)
            self.smear_scale = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_scale = nn.Parameter(torch.zeros(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = value  # pyrefly: ignore[bad-assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits (B,T,V) in float32, and with ``labels`` the mean loss in nats of predicting each next token.

        attention_mask: (B,S), 0 for padding. labels: (B,T) ids, -100 where no loss is wanted; they are shifted here.
        """
        config = self.config
        if kwargs.get("output_attentions"):
            raise ValueError("this model does not return its attention weights")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        if input_ids is None and config.value_embed_every:
            raise ValueError("this model looks values up by the tokens' ids: give input_ids, not inputs_embeds")
        x_BTD = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        B, T, _ = x_BTD.shape
        is_recomputed = self.training and getattr(self.transformer.h[0], "gradient_checkpointing", False)
        use_cache = (config.use_cache if use_cache is None else use_cache) and not is_recomputed
        if use_cache and cache is None:
            cache = DynamicCache(config=config)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past + T > config.max_seq_len:
            logger.warning_once(
                f"more than the {config.max_seq_len} tokens of the model's training: do not trust the text"
            )
        cos_BT1J, sin_BT1J = self._rotation(position_ids, past, T, x_BTD.device)
        mask = self._mask(attention_mask, B, past, T, x_BTD.device)
        if config.embed_norm:
            x_BTD = rms_norm(x_BTD)
        x_BTD = x_BTD.to(self.lm_head.weight.dtype)
        kept_BTD = x_BTD if self.smear_gate is not None else None
        if self.smear_gate is not None:
            x_BTD = self._smeared(x_BTD, attention_mask, cache, past)
        x0_BTD, middle_BTD, all_hidden = x_BTD, None, [x_BTD]
        for layer, block in enumerate(self.transformer.h):
            if self.residual_scales is not None and self.x0_scales is not None:
                x_BTD = self.residual_scales[layer] * x_BTD + self.x0_scales[layer] * x0_BTD
            value_BTC = None
            if str(layer) in self.transformer.value_embeds:
                value_BTC = self.transformer.value_embeds[str(layer)](input_ids)
            x_BTD = block(x_BTD, cos_BT1J, sin_BT1J, value_BTC, mask, cache, kept_BTD if layer == 0 else None)
            all_hidden.append(x_BTD)
            if self.backout_scale is not None and layer == config.n_layer // 2:
                middle_BTD = x_BTD
        if self.backout_scale is not None and middle_BTD is not None:
            x_BTD = x_BTD - self.backout_scale * middle_BTD
        x_BTD = all_hidden[-1] = rms_norm(x_BTD)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(x_BTD[:, kept]).float()
        if config.softcap:
            logits_BTV = config.softcap * torch.tanh(logits_BTV / config.softcap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, config.vocab_size, **kwargs)
        wants_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            cache=cache if use_cache else None,
            hidden_states=tuple(all_hidden) if wants_hidden else None,
        )
        wants_dict = config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _rotation(
        self, position_ids: torch.Tensor | None, past: int, T: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of ``position / base**(2j / K)``, float32: (B or 1,T,1,J) each."""
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=device)[None]
        pairs_J = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=device)
        inv_freq_J = 1.0 / (self.config.rope_base ** (pairs_J / self.config.head_dim))
        angles_BT1J = (position_ids.float()[..., None] * inv_freq_J)[:, :, None]
        return angles_BT1J.cos(), angles_BT1J.sin()

    def _mask(
        self, attention_mask: torch.Tensor | None, B: int, past: int, T: int, device: torch.device
    ) -> torch.Tensor | None:
        """Which keys each query sees, (B or 1,1,T,S); None where plain causal attention is meant."""
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        is_padded = attention_mask is not None and not bool(attention_mask.all())
        if not is_padded and (past == 0 or T == 1):
            return None
        own_T1 = torch.arange(past, past + T, device=device)[:, None]
        key_S = torch.arange(past + T, device=device)
        sees_TS = key_S <= own_T1
        if not is_padded or attention_mask is None:
            return sees_TS[None, None]
        # Its own key is always seen: a row of softmax without any key would be no numbers.
        return ((sees_TS & attention_mask[:, None].bool()) | (key_S == own_T1))[:, None]

    def _smeared(self, x_BTD: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any, past: int) -> torch.Tensor:
        """Each embedding with a part of the one before it.

        The cache keeps the embeddings beside the first layer's keys, so that whatever reorders or cuts the cache (beam
        search does) takes them along.
        """
        assert self.smear_gate is not None
        assert self.smear_scale is not None
        B, T, D = x_BTD.shape
        before_B1D = torch.zeros_like(x_BTD[:, :1])
        if cache is not None and past:
            stored_BG1k = cache.layers[0].keys[:, :, past - 1 : past, self.config.head_dim :]
            before_B1D = stored_BG1k.transpose(1, 2).reshape(B, 1, D)
        shifted_BTD = torch.cat((before_B1D, x_BTD[:, :-1]), dim=1)
        if attention_mask is not None and attention_mask.dim() == 2:
            is_real_BT = functional.pad(attention_mask, (1, 0), value=1)[:, past : past + T]
            shifted_BTD = shifted_BTD * is_real_BT[..., None].to(x_BTD.dtype)
        gate_BT1 = torch.sigmoid(self.smear_gate(x_BTD[..., : self.smear_gate.in_features]))
        return x_BTD + self.smear_scale * gate_BT1 * shifted_BTD
