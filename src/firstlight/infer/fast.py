"""One token for each row, written for speed: what follows the prompt, without modules and with few operations.

A step of a small model is mostly overhead, the cost of calling an operation at all. So everything that stays the same is
done once (`prepare`): matrices that read the same input become one, in the layout that a product with few rows likes; the
gains of attention and its scale become two numbers a head; weights are already in the dtype of the products. Between the
products all is float32.

Two ways to attend: `attend_to_prefix` reads the tokens that there are, and `attend_to_all` reads the whole cache under a
mask, with the position in a tensor, so that every step has the same shapes and can be compiled or recorded as a graph.

Shapes: B rows, D width, H query heads, G key/value heads, K head size, R = H/G, N = B*G, M positions of the cache,
V vocabulary, F inner width of the MLP, C = G*K, J = K/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from firstlight.infer.cache import KVCache
from firstlight.model.gpt import GPT, MLP, Attention, Block, GatedMLP
from firstlight.model.precision import NORM_EPS, Embedding

Layout = Callable[[torch.Tensor], torch.Tensor]

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, q_NRK, k_BGK, v_BGK) -> y_NRK: keep the new key and value, and attend to all that is kept."""

FEW_ROWS = 8
"""Below so many rows a CPU multiplies float32 matrices sooner than bf16 ones: the conversion is most of the work."""


@dataclass(frozen=True)
class LayerWeights:
    """One block. The columns of ``in_DX`` are queries, keys, values and, with ``value_table_VC``, the values' gates.

    up_DF: with a gated MLP (D, 2F), the gate's columns first.
    keep, again: the block reads ``keep * x + again * x0``; None without residual scales.
    """

    in_DX: torch.Tensor
    out_DD: torch.Tensor
    up_DF: torch.Tensor
    down_FD: torch.Tensor
    value_table_VC: torch.Tensor | None
    keep: float | None
    again: float | None


@dataclass(frozen=True)
class DecodeWeights:
    """All that a step reads apart from the cache. Matrices are (inputs, outputs).

    slope_A1, floor_A1: for the A = H + G heads of queries and keys; such a head is multiplied by
        ``rsqrt(slope * (sum of its squares) + floor)``, which is the norm, the gain, and for queries 1/sqrt(K).
    cos_M1K, sin_M1K: angles for whole heads, the sine with the sign of each half.
    smear_D1, smear_scale, backout: None where the model has not got them. softcap: 0 is none.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    softcap: float
    embed_norm: bool
    is_gated: bool
    table_VD: torch.Tensor
    layers: tuple[LayerWeights, ...]
    head_DV: torch.Tensor
    slope_A1: torch.Tensor
    floor_A1: torch.Tensor
    norm_floor: torch.Tensor
    cos_M1K: torch.Tensor
    sin_M1K: torch.Tensor
    smear_D1: torch.Tensor | None
    smear_scale: float
    backout: float | None


def decode_dtype(compute_dtype: torch.dtype, *, device_type: str, batch_rows: int) -> torch.dtype:
    """Dtype of products and cache: the model's, but float32 on a CPU for fewer than `FEW_ROWS` rows.

    Weights are rounded to the compute dtype all the same, so the wider products are only more exact.

    >>> decode_dtype(torch.bfloat16, device_type="cpu", batch_rows=1)
    torch.float32
    """
    return torch.float32 if device_type == "cpu" and batch_rows < FEW_ROWS else compute_dtype


def laid_out(weight_XN: torch.Tensor) -> torch.Tensor:
    """A matrix (inputs, outputs) as torch likes it for few rows. Laid out anew where there are more outputs than inputs: a
    product of one row with a wide matrix is faster over rows that lie one behind another, and with a narrow one over
    columns.
    """
    return weight_XN.contiguous() if weight_XN.shape[1] > weight_XN.shape[0] else weight_XN


@torch.no_grad()
def prepare(model: GPT, *, dtype: torch.dtype, layout: Layout = laid_out) -> DecodeWeights:
    """The model's weights as a step wants them, with matrices in ``dtype``. The model is not changed.

    layout: what becomes of each matrix, (inputs, outputs).
    """

    def matrix(weight_NX: torch.Tensor) -> torch.Tensor:
        return layout(weight_NX.detach().to(model.compute_dtype).to(dtype).t())

    config = model.config
    device = model.lm_head.weight.device
    scales, again = model.residual_scales, model.x0_scales
    layers = []
    for i, block in enumerate(model.transformer.h):
        assert isinstance(block, Block)
        attention, mlp = block.attn, block.mlp
        has_values = attention.value_gate is not None
        layers.append(
            LayerWeights(
                in_DX=matrix(_input_rows(attention)),
                out_DD=matrix(attention.c_proj.weight),
                up_DF=matrix(_up_rows(mlp)),
                down_FD=matrix(mlp.c_proj.weight),
                value_table_VC=_value_table(model, i) if has_values else None,
                keep=None if scales is None else float(scales[i]),
                again=None if again is None else float(again[i]),
            )
        )
    # gain / sqrt(sum / K + eps) = rsqrt(sum / (K gain^2) + eps / gain^2), and for queries gain has 1/sqrt(K) in it.
    gains_A1 = torch.full((config.n_head + config.n_kv_head, 1), config.qk_gain, device=device)
    gains_A1[: config.n_head] *= config.head_dim**-0.5
    cos_MJ, sin_MJ = model.rope_cos, model.rope_sin
    smear = model.smear_gate
    return DecodeWeights(
        num_heads=config.n_head,
        num_kv_heads=config.n_kv_head,
        head_dim=config.head_dim,
        softcap=config.softcap,
        embed_norm=config.embed_norm,
        is_gated=config.mlp == "swiglu",
        table_VD=model.transformer.wte.weight.detach(),
        layers=tuple(layers),
        head_DV=matrix(model.lm_head.weight),
        slope_A1=1.0 / (config.head_dim * gains_A1**2),
        floor_A1=NORM_EPS / gains_A1**2,
        norm_floor=torch.tensor(NORM_EPS, device=device),
        cos_M1K=torch.cat((cos_MJ, cos_MJ), dim=1)[:, None],
        sin_M1K=torch.cat((sin_MJ, -sin_MJ), dim=1)[:, None],
        smear_D1=None if smear is None else _padded(smear.weight, config.n_embd).t().to(model.compute_dtype).float(),
        smear_scale=0.0 if model.smear_scale is None else float(model.smear_scale),
        backout=None if model.backout_scale is None else float(model.backout_scale),
    )


def _value_table(model: GPT, layer: int) -> torch.Tensor:
    table = model.transformer.value_embeds[str(layer)]
    assert isinstance(table, Embedding)
    return table.weight.detach()


def _input_rows(attention: Attention) -> torch.Tensor:
    parts: list[torch.Tensor] = [attention.c_q.weight, attention.c_k.weight, attention.c_v.weight]
    if attention.value_gate is not None:
        parts.append(_padded(attention.value_gate.weight, attention.c_q.in_features))
    return torch.cat(parts)


def _up_rows(mlp: MLP | GatedMLP) -> torch.Tensor:
    return torch.cat((mlp.c_gate.weight, mlp.c_fc.weight)) if isinstance(mlp, GatedMLP) else mlp.c_fc.weight


def _padded(weight: torch.Tensor, width: int) -> torch.Tensor:
    """A gate that reads the leading numbers only, as one that reads all of them."""
    return functional.pad(weight, (0, width - weight.shape[1]))


def _normed(x_BD: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    squares_B1 = torch.linalg.vecdot(x_BD, x_BD)[:, None]
    return x_BD * torch.add(floor, squares_B1, alpha=1.0 / x_BD.shape[1]).rsqrt_()


def _start(weights: DecodeWeights, ids_B: torch.Tensor) -> torch.Tensor:
    """What the first block reads, (B,D)."""
    x_BD = functional.embedding(ids_B, weights.table_VD)
    return _normed(x_BD, weights.norm_floor) if weights.embed_norm else x_BD


def _plus_product(x_BD: torch.Tensor, y_BX: torch.Tensor, weight_XD: torch.Tensor) -> torch.Tensor:
    if weight_XD.dtype == x_BD.dtype:
        return torch.addmm(x_BD, y_BX, weight_XD)
    return x_BD + y_BX.to(weight_XD.dtype) @ weight_XD


def decode_step(
    weights: DecodeWeights,
    ids_B: torch.Tensor,
    before_B: torch.Tensor,
    cos_1K: torch.Tensor,
    sin_1K: torch.Tensor,
    attend: Attend,
) -> torch.Tensor:
    """Logits (B,V) float32 behind the tokens ``ids_B``, int64; ``before_B`` are the ids before those.

    cos_1K, sin_1K: rows of the weights' tables for the position of ``ids_B``; (B,1,K) where each row has its own.
    """
    H, G, K = weights.num_heads, weights.num_kv_heads, weights.head_dim
    B, A, floor, dtype = ids_B.shape[0], H + G, weights.norm_floor, weights.head_DV.dtype
    x_BD = _start(weights, ids_B)
    if weights.smear_D1 is not None:
        gate_B1 = torch.sigmoid(x_BD @ weights.smear_D1) * weights.smear_scale
        x_BD = torch.addcmul(x_BD, gate_B1, _start(weights, before_B))
    x0_BD, middle_BD = x_BD, x_BD
    for i, layer in enumerate(weights.layers):
        if layer.keep is not None and layer.again is not None:
            x_BD = torch.add(layer.keep * x_BD, x0_BD, alpha=layer.again)
        in_BX = (_normed(x_BD, floor).to(dtype) @ layer.in_DX).float()
        heads_BAK = in_BX[:, : A * K].view(B, A, K)
        squares_BA1 = torch.linalg.vecdot(heads_BAK, heads_BAK)[..., None]
        heads_BAK = heads_BAK * torch.addcmul(weights.floor_A1, squares_BA1, weights.slope_A1).rsqrt_()
        # Halves (a, b) become (a cos + b sin, b cos - a sin); rolled by half a head they are (b, a).
        turned_BAK = (heads_BAK * cos_1K).addcmul_(heads_BAK.roll(K // 2, -1), sin_1K)
        v_BGK = in_BX[:, A * K : (A + G) * K].view(B, G, K)
        if layer.value_table_VC is not None:
            gate_BG1 = torch.sigmoid(in_BX[:, (A + G) * K :])[..., None] * 2
            v_BGK = torch.addcmul(v_BGK, gate_BG1, functional.embedding(ids_B, layer.value_table_VC).view(B, G, K))
        y_NRK = attend(i, turned_BAK[:, :H].reshape(B * G, H // G, K), turned_BAK[:, H:], v_BGK)
        x_BD = _plus_product(x_BD, y_NRK.view(B, H * K), layer.out_DD)
        up_BF = _normed(x_BD, floor).to(dtype) @ layer.up_DF
        if weights.is_gated:
            gate_BF, up_BF = up_BF.chunk(2, dim=1)
            inner_BF = functional.silu(gate_BF) * up_BF
        else:
            up_BF = up_BF.relu_()
            inner_BF = up_BF * up_BF
        x_BD = _plus_product(x_BD, inner_BF, layer.down_FD)
        if i == len(weights.layers) // 2:
            middle_BD = x_BD
    if weights.backout is not None:
        x_BD = torch.sub(x_BD, middle_BD, alpha=weights.backout)
    z_BV = (_normed(x_BD, floor).to(dtype) @ weights.head_DV).float()
    if weights.softcap == 0:
        return z_BV
    return z_BV.div_(weights.softcap).tanh_().mul_(weights.softcap)


def attend_to_prefix(cache: KVCache, position: int) -> Attend:
    """Reads exactly the keys that there are; ``position`` is that of the new token, counted from 0."""
    keys_LNMK, values_LNMK = cache.k_LBGMK.flatten(1, 2).unbind(), cache.v_LBGMK.flatten(1, 2).unbind()

    def attend(layer: int, q_NRK: torch.Tensor, k_BGK: torch.Tensor, v_BGK: torch.Tensor) -> torch.Tensor:
        keys_NMK, values_NMK = keys_LNMK[layer], values_LNMK[layer]
        keys_NMK.select(1, position).view_as(k_BGK).copy_(k_BGK)
        values_NMK.select(1, position).view_as(v_BGK).copy_(v_BGK)
        keys_NSK, values_NSK = keys_NMK.narrow(1, 0, position + 1), values_NMK.narrow(1, 0, position + 1)
        scores_NRS = torch.bmm(q_NRK.to(keys_NSK.dtype), keys_NSK.transpose(1, 2))
        return torch.bmm(scores_NRS.softmax(-1), values_NSK)

    return attend


def attend_to_all(cache: KVCache, position_1: torch.Tensor) -> Attend:
    """Reads all M places, those behind ``position_1`` (int64, one number) with a weight of zero."""
    places_M = torch.arange(cache.max_len, device=position_1.device)
    mask_M = torch.zeros_like(places_M, dtype=cache.k_LBGMK.dtype).masked_fill(places_M > position_1, float("-inf"))

    def attend(layer: int, q_NRK: torch.Tensor, k_BGK: torch.Tensor, v_BGK: torch.Tensor) -> torch.Tensor:
        keys_BGMK, values_BGMK = cache.k_LBGMK[layer], cache.v_LBGMK[layer]
        keys_BGMK.index_copy_(2, position_1, k_BGK[:, :, None].to(keys_BGMK.dtype))
        values_BGMK.index_copy_(2, position_1, v_BGK[:, :, None].to(keys_BGMK.dtype))
        keys_NMK, values_NMK = keys_BGMK.flatten(0, 1), values_BGMK.flatten(0, 1)
        scores_NRM = torch.bmm(q_NRK.to(keys_NMK.dtype), keys_NMK.transpose(1, 2)) + mask_M
        return torch.bmm(scores_NRM.softmax(-1), values_NMK)

    return attend
