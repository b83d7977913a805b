"""Shapes, bytes, FLOPs and rates that follow from a config by arithmetic. Nothing is run; the largest model costs nothing.

Shapes: B rows, T tokens in a row, D width, H query heads, G key/value heads, K head size, F inner width of the MLP,
V vocabulary. One multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from firstlight.model import count
from firstlight.model.config import GATE_CHANNELS, GPTConfig
from firstlight.model.gpt import GPT
from firstlight.model.init import InitRow, init_row
from firstlight.optim.groups import MuonGroup, make_groups
from firstlight.recipes.explain.facts import Part, SchedulePoint, Stage, Weight
from firstlight.runtime.context import DTYPE_NAMES
from firstlight.train.horizon import Curve
from firstlight.train.loss import default_chunk_rows

KINDS = (
    ("transformer.wte.", "embedding"),
    ("lm_head.", "head"),
    ("transformer.value_embeds.", "value_embeds"),
    (".value_gate.", "scalars"),
    (".attn.", "attention"),
    (".mlp.", "mlp"),
)
"""Part of a parameter's name -> the group of `count.num_params` that it belongs to; the others are ``scalars``."""


def kind_of(name: str) -> str:
    """Group of a parameter in `count.num_params`.

    >>> kind_of("transformer.h.3.attn.c_q.weight"), kind_of("smear_scale")
    ('attention', 'scalars')
    """
    return next((kind for part, kind in KINDS if part in name), "scalars")


def describe_weights(
    config: GPTConfig, *, embedding_lr: float, unembedding_lr: float, matrix_lr: float
) -> tuple[Weight, ...]:
    """Every learned tensor in the model's order, with its rule and rate. Built on the meta device, so without memory."""
    with torch.device("meta"):
        model = GPT(config)
    groups = make_groups(
        model.named_parameters(), embedding_lr=embedding_lr, unembedding_lr=unembedding_lr, matrix_lr=matrix_lr
    )
    group_of = {name: group for group in groups for name, _ in group.parameters}
    weights = []
    for name, tensor in model.named_parameters():
        group = group_of[name]
        is_muon = isinstance(group, MuonGroup)
        rows, columns = (*tensor.shape, 1)[:2]
        weights.append(
            Weight(
                name=name,
                shape=tuple(tensor.shape),
                dtype="fp32",
                num_params=tensor.numel(),
                num_bytes=tensor.numel() * tensor.element_size(),
                kind=kind_of(name),
                group=group.name,
                rule="Muon" if is_muon else "AdamW",
                lr=group.lr * max(1.0, rows / columns) ** 0.5 if is_muon else group.lr,
                start=_start(init_row(name), tensor.shape),
                # Muon keeps one running mean, AdamW two, all float32.
                state_bytes=tensor.numel() * (4 if is_muon else 8),
            )
        )
    return tuple(weights)


def _start(row: InitRow, shape: torch.Size) -> str:
    if row.kind == "constant":
        return f"all {row.std:g}"
    std = shape[-1] ** -0.5 if row.std == "fan_in" else float(row.std)
    return f"{row.kind}, std {std:.3g}"


def describe_stages(
    config: GPTConfig, *, batch_rows: int, seq_len: int, compute_dtype: torch.dtype
) -> tuple[Stage, ...]:
    """Every tensor of a forward pass of B = batch_rows rows of T = seq_len tokens, in order."""
    return tuple(_stages(config, batch_rows, seq_len, DTYPE_NAMES[compute_dtype]))


def _stages(config: GPTConfig, B: int, T: int, dtype: str) -> Iterator[Stage]:
    D, H, G, K = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
    F, V = config.mlp_inner, config.vocab_size
    sizes = {"B": B, "T": T, "D": D, "H": H, "G": G, "K": K, "F": F, "V": V, "1": 1}
    itemsize = {"int64": 8, "fp32": 4, "bf16": 2, "fp16": 2}

    def stage(
        key: str, name: str, how: str, symbols: str, flops: int = 0, *, kind: str = dtype, transient: bool = False
    ) -> Stage:
        layer = int(key.split(".")[1]) if key.startswith("h.") else None
        shape = tuple(prod(sizes[letter] for letter in part.split("·")) for part in symbols.split(", ") if part)
        return Stage(
            key, layer, name, how, f"({symbols})", shape, kind, prod(shape) * itemsize[kind], flops, transient
        )  # fmt: skip

    yield stage("ids", "token ids", "the tokenizer's", "B, T", kind="int64")
    yield stage("embedding", "embedding rows", "row id of wte", "B, T, D", kind="fp32")
    if config.smear:
        channels = min(GATE_CHANNELS, D)
        yield stage("smear", "smear gate", f"first {channels} numbers · smear_gate", "B, T, 1", 2 * B * T * channels)
    matrix = 2 * B * T * D
    for i in range(config.n_layer):
        at = f"h.{i}."
        yield stage(f"{at}in", "residual stream in", _stream_in(config, i), "B, T, D")
        yield stage(f"{at}attn_norm", "normed for attention", "RMSNorm(x)", "B, T, D")
        yield stage(f"{at}q", "queries", "x · c_qᵀ", "B, T, H·K", matrix * H * K)
        yield stage(f"{at}k", "keys", "x · c_kᵀ", "B, T, G·K", matrix * G * K)
        yield stage(f"{at}v", "values", "x · c_vᵀ", "B, T, G·K", matrix * G * K)
        if i in config.value_embed_layers:
            channels = min(GATE_CHANNELS, D)
            yield stage(f"{at}value_embed", "value embedding rows", "row id of value_embeds", "B, T, G·K", kind="fp32")
            yield stage(
                f"{at}gate",
                "value gates",
                f"first {channels} numbers of x · value_gateᵀ",
                "B, T, G",
                2 * B * T * channels * G,
            )
            yield stage(f"{at}v_mixed", "values, mixed", "v + 2 σ(gate) · value embedding", "B, T, G·K")
        yield stage(f"{at}q_turned", "queries, normed and turned", "RoPE(RMSNorm(q))", "B, H, T, K")
        yield stage(f"{at}k_turned", "keys, normed and turned", "RoPE(RMSNorm(k))", "B, G, T, K")
        yield stage(
            f"{at}map", "attention map", "softmax(q · kᵀ / √K), causal", "B, H, T, T", 2 * B * H * T * T * K,
            kind="fp32", transient=True,
        )  # fmt: skip
        yield stage(f"{at}mixed", "mixed values", "map · v, heads side by side", "B, T, H·K", 2 * B * H * T * T * K)
        yield stage(f"{at}attn_out", "attention's answer", "· c_projᵀ", "B, T, D", matrix * H * K)
        yield stage(f"{at}mid", "residual stream + attention", "x + answer", "B, T, D")
        yield stage(f"{at}mlp_norm", "normed for MLP", "RMSNorm(x)", "B, T, D")
        if config.mlp == "swiglu":
            yield stage(f"{at}mlp_gate", "MLP gate", "x · c_gateᵀ", "B, T, F", matrix * F)
        yield stage(f"{at}up", "MLP, wide", "x · c_fcᵀ", "B, T, F", matrix * F)
        how = "SiLU(gate) · wide" if config.mlp == "swiglu" else "ReLU(wide)²"
        yield stage(f"{at}act", "MLP, activated", how, "B, T, F")
        yield stage(f"{at}mlp_out", "MLP's answer", "· c_projᵀ", "B, T, D", matrix * F)
        yield stage(f"{at}out", "residual stream out", "x + answer", "B, T, D")
    last = "RMSNorm(x)" if not config.backout else "RMSNorm(x - backout · middle x)"
    yield stage("hidden", "last hidden states", last, "B, T, D")
    yield stage("scores", "logits before the cap" if config.softcap else "head's product", "· lm_headᵀ", "B, T, V", matrix * V)  # fmt: skip
    cap = f"{config.softcap:g} tanh(z / {config.softcap:g})" if config.softcap else "in float32, no cap"
    yield stage("logits", "logits", cap, "B, T, V", kind="fp32")
    yield stage("loss", "loss of each token", "-log softmax(logits)[target]", "B, T", kind="fp32")


def _stream_in(config: GPTConfig, layer: int) -> str:
    x = ("RMSNorm(row)" if config.embed_norm else "the row") if layer == 0 else "from the layer below"
    x += " + smear" if config.smear and layer == 0 else ""
    return f"a · ({x}) + b · embedding" if config.residual_scales else x


def flop_parts(config: GPTConfig, *, seq_len: int) -> tuple[Part, ...]:
    """Training FLOPs of one token, forward and backward, by where they go; they add up to `count.flops_per_token`."""
    groups = count.num_params(config)
    L, D = config.n_layer, config.n_embd
    return (
        Part("MLP", 6 * groups["mlp"], "6 × its parameters"),
        Part("attention matrices", 6 * groups["attention"], "6 × their parameters"),
        Part("attention scores", 12 * L * D * seq_len, f"12 × L × D × T = 12 × {L} × {D} × {seq_len:,}"),
        Part("head", 6 * groups["head"], "6 × its parameters"),
    )


def memory_parts(
    config: GPTConfig,
    *,
    batch_rows: int,
    seq_len: int,
    compute_dtype: torch.dtype,
    attention_kernel: str,
    checkpoint_activations: bool = False,
    world_size: int = 1,
    shard_weights: bool = False,
    device_type: str = "cpu",
) -> tuple[Part, ...]:
    """Bytes of training on one device, by what holds them. What does not depend on the batch adds up to
    `count.fixed_train_bytes`, whose options the last three are."""
    weights = count.weights_bytes(config)
    rows = min(default_chunk_rows(config.vocab_size), batch_rows * seq_len)
    itemsize = compute_dtype.itemsize
    fixed = count.fixed_train_bytes(config, world_size=world_size, shard_weights=shard_weights, device_type=device_type)
    if shard_weights and world_size > 1:
        how = f"a {world_size}th of each on every process, and for a while one block and the rest whole"
        fixed_parts = [Part("weights, gradients, optimizer", fixed, how)]
    else:
        share = f", shared by {world_size} processes" if world_size > 1 else ""
        state = -(-count.optimizer_bytes(config) // world_size)
        fixed_parts = [
            Part("weights", weights, "4 bytes a parameter"),
            Part("gradients", weights, "4 bytes a parameter"),
            Part("optimizer", state, f"AdamW keeps two numbers a parameter, Muon one, 4 bytes each{share}"),
            Part("received gradients", fixed - 2 * weights - state, "of the other processes"),
        ]
    return (
        *(part for part in fixed_parts if part.amount),
        Part(
            "activations",
            count.activation_bytes(
                config,
                batch_rows=batch_rows,
                seq_len=seq_len,
                compute_bytes=itemsize,
                attention_kernel=attention_kernel,
                checkpoint_activations=checkpoint_activations,
            ),
            f"kept for the backward pass of {batch_rows:,} rows of {seq_len:,} tokens (estimate)",
        ),
        Part(
            "loss chunk",
            rows * config.vocab_size * itemsize,
            f"logits of {rows:,} tokens × {config.vocab_size:,} ids × {itemsize} bytes at a time",
        ),
    )


def schedule_points(curve: Curve, *, total: float, last: float, num_points: int = 201) -> tuple[SchedulePoint, ...]:
    """The curve at even distances from the first update, at 0, to the last, at ``last`` of ``total`` (steps, or seconds)."""
    return tuple(schedule_point(curve, last * i / (num_points - 1), total) for i in range(num_points))


def schedule_point(curve: Curve, t: float, total: float) -> SchedulePoint:
    """The curve at ``t`` of ``total`` (steps, or seconds)."""
    hyper = curve.hyper(t, total)
    return SchedulePoint(t / total, hyper.lr_multiplier, hyper.momentum)
