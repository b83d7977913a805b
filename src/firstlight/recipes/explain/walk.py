"""One text through the real model, with hooks at every tensor that has a name.

The model is run as it is. Its attention kernel never holds a map, so the maps are computed again in float32 from the
queries, keys and values that the hooks caught; how far their product with the values is from the kernel's own output is
part of the result.

Shapes: B = 1 row, T tokens, D width, H query heads, G key/value heads, K head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from firstlight.model.gpt import GPT, Block
from firstlight.model.rope import normed_and_turned
from firstlight.recipes.explain import costs
from firstlight.recipes.explain.facts import Gate, Guess, Head, Position, Score, Stats, Walk
from firstlight.recipes.explain.pieces import piece_of
from firstlight.runtime.context import DTYPE_NAMES
from firstlight.tokens.bpe import Tokenizer

NUM_GUESSES = 5
SEED_BATCHES = 2
"""Batches that the text is cut into for the seed's own formula, which is a mean over batches."""

Seen = dict[str, torch.Tensor]


@torch.no_grad()
def walk_text(model: GPT, tokenizer: Tokenizer, ids: Sequence[int]) -> Walk:
    """Run ``model`` on BOS and ``ids``, and note every tensor's moments, every map, and what it says at each position.

    ids: of the text, at least one, at most max_seq_len of the model. The model's weights and mode are left alone.
    """
    inputs = [tokenizer.bos_id, *ids[:-1]]
    device = model.lm_head.weight.device
    inputs_BT = torch.tensor([inputs], device=device)
    seen: Seen = {"ids": inputs_BT}
    with _hooked(model, seen):
        seen["hidden"] = model.trunk(model.embed(inputs_BT))
        seen["logits"] = model.logits(seen["hidden"])
    seen = {key: tensor.detach().cpu() for key, tensor in seen.items()}
    heads, gates, error = _attention(model, seen)
    losses_T = _losses(seen["logits"][0], ids)
    seen["loss"] = losses_T.float()[None]
    positions = _positions(seen["logits"][0], losses_T, inputs, ids, tokenizer)
    stages = costs.describe_stages(
        model.config, batch_rows=1, seq_len=len(ids), compute_dtype=model.compute_dtype
    )  # fmt: skip
    measured = []
    for stage in stages:
        tensor = seen[stage.key]
        assert tuple(tensor.shape) == stage.shape, f"{stage.key} is {tuple(tensor.shape)}, not {stage.shape}"
        measured.append(replace(stage, stats=stats_of(tensor) if stage.key != "ids" else None))
    return Walk(
        stages=tuple(measured),
        heads=tuple(heads),
        gates=tuple(gates),
        positions=positions,
        score=score_of(losses_T.tolist(), [len(position.target.raw) for position in positions]),
        attention_error=error,
        dtype=DTYPE_NAMES[model.compute_dtype],
        cap_low=float(seen["scores"].min()),
        cap_high=float(seen["scores"].max()),
    )


def stats_of(tensor: torch.Tensor) -> Stats:
    """Moments over all numbers of a tensor, in float64."""
    x = tensor.double()
    return Stats(
        mean=float(x.mean()),
        std=float(x.std(correction=0)),
        rms=float(x.square().mean().sqrt()),
        low=float(x.min()),
        high=float(x.max()),
        zero_frac=float((x == 0).double().mean()),
    )


def score_of(losses_nats: Sequence[float], num_bytes: Sequence[int]) -> Score:
    """Losses of a text's tokens in nats, and each token's bytes -> the text's score.

    bits per byte is a ratio of two sums: nats over ln 2 times bytes. ``seed_bpb`` is the seed's listing on the same numbers:
    each batch's *mean* loss per token is weighted with the batch's bytes, so that the bytes cancel and bits per token are
    left.
    """
    nats, total_bytes, num_tokens = math.fsum(losses_nats), sum(num_bytes), len(losses_nats)
    num_batches = min(SEED_BATCHES, num_tokens)
    edges = [num_tokens * i // num_batches for i in range(num_batches + 1)]
    weighted = 0.0
    for begin, end in pairwise(edges):
        weighted += math.fsum(losses_nats[begin:end]) / (end - begin) * sum(num_bytes[begin:end])
    return Score(
        nats=nats,
        num_tokens=num_tokens,
        num_bytes=total_bytes,
        nats_per_token=nats / num_tokens,
        bits_per_token=nats / num_tokens / math.log(2),
        bits_per_byte=nats / (math.log(2) * total_bytes),
        perplexity=math.exp(nats / num_tokens),
        seed_bpb=weighted / total_bytes / math.log(2),
        seed_batches=num_batches,
    )


@contextmanager
def _hooked(model: GPT, seen: Seen) -> Iterator[None]:
    """Inside, a forward pass leaves its tensors in ``seen``, under the keys of `costs.describe_stages`."""
    handles = []

    def output(module: nn.Module | None, key: str) -> None:
        if module is not None:
            handles.append(module.register_forward_hook(partial(_keep_output, seen, key)))

    def inputs(module: nn.Module, *keys: str) -> None:
        handles.append(module.register_forward_pre_hook(partial(_keep_inputs, seen, keys)))

    transformer = model.transformer
    output(transformer.wte, "embedding")
    output(model.smear_gate, "smear")
    output(model.lm_head, "scores")
    for layer, table in transformer.value_embeds.items():
        output(table, f"h.{layer}.value_embed")
    for i, block in enumerate(transformer.h):
        assert isinstance(block, Block)
        at, attn, mlp = f"h.{i}.", block.attn, block.mlp
        inputs(block, f"{at}in", f"{at}cos", f"{at}sin")
        output(block, f"{at}out")
        inputs(attn, f"{at}attn_norm")
        for name in ("q", "k", "v"):
            output(attn.get_submodule(f"c_{name}"), at + name)
        output(attn.value_gate, f"{at}gate_raw")
        inputs(attn.c_proj, f"{at}mixed")
        output(attn.c_proj, f"{at}attn_out")
        inputs(mlp, f"{at}mlp_norm")
        output(getattr(mlp, "c_gate", None), f"{at}mlp_gate")
        output(mlp.c_fc, f"{at}up")
        inputs(mlp.c_proj, f"{at}act")
        output(mlp.c_proj, f"{at}mlp_out")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_output(seen: Seen, key: str, module: nn.Module, arguments: Any, result: torch.Tensor) -> None:
    seen[key] = result


def _keep_inputs(seen: Seen, keys: tuple[str, ...], module: nn.Module, arguments: tuple[Any, ...]) -> None:
    seen.update(zip(keys, arguments, strict=False))


def _attention(model: GPT, seen: Seen) -> tuple[list[Head], list[Gate], float]:
    """Heads and gates of all layers, and the largest difference from the kernel's own outputs. Adds to ``seen`` what no hook
    can catch."""
    config = model.config
    heads: list[Head] = []
    gates: list[Gate] = []
    worst = 0.0
    for i in range(config.n_layer):
        at = f"h.{i}."
        turn: Callable[[torch.Tensor], torch.Tensor] = partial(
            normed_and_turned, cos_TJ=seen[f"{at}cos"], sin_TJ=seen[f"{at}sin"], gain=config.qk_gain
        )
        B, T, _ = seen[f"{at}q"].shape
        q_BHTK = seen[f"{at}q_turned"] = turn(seen[f"{at}q"].view(B, T, config.n_head, config.head_dim))
        k_BGTK = seen[f"{at}k_turned"] = turn(seen[f"{at}k"].view(B, T, config.n_kv_head, config.head_dim))
        v_BTGK = seen[f"{at}v"].view(B, T, config.n_kv_head, config.head_dim)
        if f"{at}gate_raw" in seen:
            seen[f"{at}gate"] = seen[f"{at}gate_raw"]
            open_BTG = 2 * torch.sigmoid(seen[f"{at}gate_raw"])
            rows_BTGK = seen[f"{at}value_embed"].to(v_BTGK.dtype).view_as(v_BTGK)
            v_BTGK = v_BTGK + open_BTG[..., None] * rows_BTGK
            seen[f"{at}v_mixed"] = v_BTGK.flatten(2)
            for g in range(config.n_kv_head):
                gates.append(Gate(i, g, tuple(open_BTG[0, :, g].float().tolist())))
        map_BHTT = attention_map(q_BHTK, k_BGTK)
        seen[f"{at}map"] = map_BHTT
        repeats = config.n_head // config.n_kv_head
        v_BHTK = v_BTGK.float().transpose(1, 2).repeat_interleave(repeats, dim=1)
        mixed_BTD = (map_BHTT @ v_BHTK).transpose(1, 2).flatten(2)
        worst = max(worst, float((mixed_BTD - seen[f"{at}mixed"].float()).abs().max()))
        seen[f"{at}mid"] = seen[f"{at}in"] + seen[f"{at}attn_out"]
        heads += [describe_head(i, h, map_BHTT[0, h]) for h in range(config.n_head)]
    return heads, gates, worst


def attention_map(q_BHTK: torch.Tensor, k_BGTK: torch.Tensor) -> torch.Tensor:
    """Softmax of the causal scores ``q . k / sqrt(K)`` in float32, (B,H,T,T); G key heads are shared by H / G queries."""
    H, T, K = q_BHTK.shape[1:]
    k_BHTK = k_BGTK.float().repeat_interleave(H // k_BGTK.shape[1], dim=1)
    scores_BHTT = q_BHTK.float() @ k_BHTK.transpose(2, 3) / K**0.5
    future_TT = torch.ones(T, T, dtype=torch.bool).triu(1)
    return scores_BHTT.masked_fill(future_TT, -torch.inf).softmax(-1)


def describe_head(layer: int, head: int, map_TT: torch.Tensor) -> Head:
    """One head's map and its summary. A row's entropy is 0 bits where it looks at one token only."""
    p_TT = map_TT.double()
    T = len(p_TT)
    entropy = -torch.special.xlogy(p_TT, p_TT).sum(-1) / math.log(2)
    later = max(1, T - 1)
    return Head(
        layer=layer,
        head=head,
        weights=tuple(tuple(round(p, 6) for p in row[: t + 1]) for t, row in enumerate(p_TT.tolist())),
        entropy_bits=float(entropy.mean()),
        even_bits=sum(math.log2(t + 1) for t in range(T)) / T,
        on_first=float(p_TT[1:, 0].sum()) / later,
        on_self=float(p_TT.diagonal()[1:].sum()) / later,
        on_previous=float(p_TT.diagonal(-1).sum()) / later,
    )


def _losses(logits_TV: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """Cross-entropy of every token in nats, (T,) float64."""
    z_TV = logits_TV.double()
    return z_TV.logsumexp(-1) - z_TV[torch.arange(len(targets)), torch.tensor(list(targets))]


def _positions(
    logits_TV: torch.Tensor, losses_T: torch.Tensor, inputs: Sequence[int], targets: Sequence[int], tokenizer: Tokenizer
) -> tuple[Position, ...]:
    p_TV = logits_TV.double().softmax(-1)
    top = p_TV.topk(min(NUM_GUESSES, p_TV.shape[1]))

    def guess(id: int, probability: float) -> Guess:
        # A model may have more ids than its tokenizer (before training, or a vocabulary rounded up): those have no text.
        text = piece_of(tokenizer, id).text if id < tokenizer.vocab_size else f"#{id}"
        return Guess(id, text, probability)

    positions = []
    for t, target in enumerate(targets):
        guesses = zip(top.indices[t].tolist(), top.values[t].tolist(), strict=True)
        own = logits_TV[t, target]
        positions.append(
            Position(
                index=t,
                input=piece_of(tokenizer, inputs[t]),
                target=piece_of(tokenizer, target),
                probability=float(p_TV[t, target]),
                rank=int((logits_TV[t] > own).sum()) + 1,
                loss_nats=float(losses_T[t]),
                top=tuple(guess(id, p) for id, p in guesses),
            )
        )
    return tuple(positions)
