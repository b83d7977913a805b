"""Our model as a `Scorer`: each token that texts share is run once, and logits are made only where something is scored.

The same function as `GPT.forward`, on another layout: texts are packed as trees in one flat row (`trees.py`), so that
nothing is padded but the inputs of attention. In the last block only the places from which something is predicted go
through attention and MLP. `tests/eval/core/test_engine.py` holds it to `GPT.forward`, with every option of the model.

Shapes: R trees, N tokens of all trees, P longest prefix, Q most branch tokens, U most places used in a tree, W such places
of all trees, S scored ids, D width, H query heads, G key/value heads, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from firstlight.errors import ConfigError
from firstlight.eval.core.scorer import Request, Scored
from firstlight.eval.core.trees import Packed, Tree, batches, pack, plant
from firstlight.model.attention import attend
from firstlight.model.gpt import GPT, Attention, Block
from firstlight.model.precision import rms_norm
from firstlight.model.rope import normed_and_turned

CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 65536
LOGITS_BYTES = 8 * 2**20
"""Of the float32 logits that are held at once. More leave a CPU's caches: 32 MiB took 8 % longer on hellaswag_zeroshot."""


class GPTScorer:
    """Scores ends of texts with our model.

    batch_tokens: tokens in one pass, padding included; None is what suits the device. It is halved, and said through
    ``report``, where memory ran out.

    Raises ConfigError for a model whose weights are divided among processes.
    """

    def __init__(
        self, model: GPT, *, batch_tokens: int | None = None, report: Callable[[str], None] | None = None
    ) -> None:
        if type(model.lm_head.weight.data).__name__ == "DTensor":
            raise ConfigError(
                "the model's weights are divided among processes, and tasks are scored with whole ones",
                hint="score a checkpoint of it with `firstlight eval core`",
            )
        self.model = model
        self.batch_tokens = batch_tokens or (
            CPU_BATCH_TOKENS if model.lm_head.weight.device.type == "cpu" else GPU_BATCH_TOKENS
        )
        self._report = report

    @property
    def max_seq_len(self) -> int | None:
        return self.model.config.max_seq_len

    @torch.no_grad()
    def score(self, groups: Sequence[Sequence[Request]]) -> list[list[Scored]]:
        """See `Scorer.score`. Also raises ConfigError where a single text does not fit into memory."""
        longest = max((len(request.ids) for group in groups for request in group), default=0)
        # The last id is no input, so a text may be one longer than the table of positions.
        if longest > self.model.config.max_seq_len + 1:
            raise ConfigError(
                f"a text of {longest} tokens is longer than the model's max_seq_len {self.model.config.max_seq_len}",
                hint="cut it before it is scored",
            )
        found: dict[int, Scored] = {}
        waiting = list(batches(plant(groups), max_tokens=self.batch_tokens))[::-1]
        while waiting:
            batch = waiting.pop()
            try:
                found.update(self._score_batch(batch))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                num_tokens = sum(tree.num_tokens for tree in batch)
                if len(batch) == 1:
                    raise ConfigError(
                        f"there is not enough memory to score one question of {num_tokens:,} tokens",
                        hint="use another --device, or free memory",
                    ) from error
                rest = [tree for other in waiting for tree in other] + batch
                self.batch_tokens = max(1, min(self.batch_tokens, num_tokens) // 2)
                if self._report is not None:
                    self._report(f"out of memory: going on with batches of {self.batch_tokens:,} tokens")
            else:
                continue
            # Outside the handler, which holds the tensors of the failed pass.
            if self.model.lm_head.weight.device.type == "cuda":
                torch.cuda.empty_cache()
            waiting = list(batches(rest, max_tokens=self.batch_tokens))[::-1]
        numbers = iter(range(len(found)))
        return [[found[next(numbers)] for _ in group] for group in groups]

    def _score_batch(self, trees: Sequence[Tree]) -> dict[int, Scored]:
        packed = pack(trees)
        x_WD = packed_hidden(self.model, packed)
        nats_S, greedy_S = _losses(self.model, x_WD, packed)
        return {
            number: Scored(float(nats_S[part].sum()), part.stop - part.start, bool(greedy_S[part].all()))
            for number, part in packed.members
        }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def extended(model: GPT, max_seq_len: int) -> GPT:
    """The same weights with rotary tables for ``max_seq_len`` positions. Positions beyond those of training are strange to it."""
    with torch.device("meta"):
        longer = GPT(replace(model.config, max_seq_len=max_seq_len), compute_dtype=model.compute_dtype)
    longer.load_state_dict(model.state_dict(), assign=True)
    device = model.rope_cos.device
    shape = (max_seq_len, model.config.head_dim // 2)
    longer.rope_cos, longer.rope_sin = torch.empty(shape, device=device), torch.empty(shape, device=device)
    longer.reset_rope()
    longer.attention_kernel = model.attention_kernel
    return longer.requires_grad_(False).eval()


class _Places:
    """The index tables of a packed batch on the model's device."""

    def __init__(self, packed: Packed, device: torch.device) -> None:
        def table(values: object) -> torch.Tensor:
            return torch.as_tensor(values).to(device)

        self.packed = packed
        self.ids_N, self.positions_N = table(packed.ids_N), table(packed.positions_N)
        self.parents_N, self.used_W = table(packed.parents_N), table(packed.used_W)
        self.prefix_at, self.branch_at = table(packed.prefix_at), table(packed.branch_at)
        self.key_at, self.used_at = table(packed.key_at), table(packed.used_at)
        # One mask for all heads: (R,1,queries,keys).
        self.sees_R1UM = table(packed.sees_RUM)[:, None]
        self.sees_R1QM = None if packed.sees_RQM is None else table(packed.sees_RQM)[:, None]


def packed_hidden(model: GPT, packed: Packed) -> torch.Tensor:
    """What the head reads at the places from which something is predicted, (W,D)."""
    config = model.config
    places = _Places(packed, model.lm_head.weight.device)
    embedded = model.embed(places.ids_N[None])
    x_1ND = embedded.x_BTD
    if config.embed_norm:
        x_1ND = rms_norm(x_1ND)
    x_1ND = x_1ND.to(model.compute_dtype)
    if model.smear_gate is not None and model.smear_scale is not None:
        gate_1N1 = torch.sigmoid(model.smear_gate(x_1ND[..., : model.smear_gate.in_features]))
        has_before_N1 = (places.parents_N >= 0)[:, None]
        before_1ND = x_1ND[:, places.parents_N.clamp_min(0)] * has_before_N1
        x_1ND = x_1ND + (model.smear_scale.to(x_1ND.dtype) * gate_1N1) * before_1ND
    x0_1ND, middle_1WD = x_1ND, None
    cos_NJ, sin_NJ = model.rope_cos[places.positions_N], model.rope_sin[places.positions_N]
    value_of = dict(zip(config.value_embed_layers, embedded.values, strict=True))
    last = config.n_layer - 1
    for layer, block in enumerate(model.transformer.h):
        assert isinstance(block, Block)
        if model.residual_scales is not None and model.x0_scales is not None:
            a, b = model.residual_scales[layer].to(x_1ND.dtype), model.x0_scales[layer].to(x_1ND.dtype)
            x_1ND = a * x_1ND + b * x0_1ND
        y_1XC = _attention(
            block.attn, rms_norm(x_1ND), cos_NJ, sin_NJ, value_of.get(layer), places, only_used=layer == last
        )
        if layer == last:
            x_1ND = x_1ND[:, places.used_W]
        x_1ND = x_1ND + y_1XC
        x_1ND = x_1ND + block.mlp(rms_norm(x_1ND))
        if model.backout_scale is not None and layer == config.n_layer // 2:
            middle_1WD = x_1ND if layer == last else x_1ND[:, places.used_W]
    if model.backout_scale is not None and middle_1WD is not None:
        x_1ND = x_1ND - model.backout_scale.to(x_1ND.dtype) * middle_1WD
    return rms_norm(x_1ND)[0]


def _attention(
    attention: Attention,
    x_1ND: torch.Tensor,
    cos_NJ: torch.Tensor,
    sin_NJ: torch.Tensor,
    value_embed_1NC: torch.Tensor | None,
    places: _Places,
    *,
    only_used: bool,
) -> torch.Tensor:
    """As `Attention.forward`, with queries of all tokens or of the used ones only: (1,N,D) or (1,W,D)."""
    H, G, K = attention.n_head, attention.n_kv_head, attention.head_dim
    N = x_1ND.shape[1]
    k_1NGK = attention.c_k(x_1ND).view(1, N, G, K)
    v_1NGK = attention.c_v(x_1ND).view(1, N, G, K)
    if attention.value_gate is not None and value_embed_1NC is not None:
        gate = 2 * torch.sigmoid(attention.value_gate(x_1ND[..., : attention.value_gate.in_features]))[..., None]
        v_1NGK = v_1NGK + gate * value_embed_1NC.to(v_1NGK.dtype).view_as(v_1NGK)
    k_NGK = normed_and_turned(k_1NGK, cos_NJ, sin_NJ, gain=attention.qk_gain)[0].transpose(0, 1)
    v_NGK = v_1NGK[0]
    if only_used:
        x_1ND, cos_NJ, sin_NJ = x_1ND[:, places.used_W], cos_NJ[places.used_W], sin_NJ[places.used_W]
    q_1XHK = attention.c_q(x_1ND).view(1, -1, H, K)
    q_XHK = normed_and_turned(q_1XHK, cos_NJ, sin_NJ, gain=attention.qk_gain)[0].transpose(0, 1)
    packed = places.packed
    R, P, Q = packed.num_trees, packed.prefix_width, packed.branch_width
    num_prefix = packed.num_prefix
    is_grouped = H != G
    if only_used or Q:
        k_RGMK, v_RGMK = _laid_out(k_NGK, places.key_at, R, P + Q), _laid_out(v_NGK, places.key_at, R, P + Q)
    else:
        k_RGMK, v_RGMK = _laid_out(k_NGK, places.prefix_at, R, P), _laid_out(v_NGK, places.prefix_at, R, P)
    if only_used:
        q_RHUK = _laid_out(q_XHK, places.used_at, R, packed.used_width)
        y_RHUK = functional.scaled_dot_product_attention(
            q_RHUK, k_RGMK, v_RGMK, attn_mask=places.sees_R1UM, enable_gqa=is_grouped
        )
        return attention.c_proj(_taken_back(y_RHUK, places.used_at)[None])
    q_RHPK = _laid_out(q_XHK[:num_prefix], places.prefix_at, R, P)
    score_bound = 1.02 * attention.qk_gain**2 * K**0.5
    y_RHPK = attend(q_RHPK, k_RGMK[:, :, :P], v_RGMK[:, :, :P], score_bound=score_bound)
    y_XC = _taken_back(y_RHPK, places.prefix_at)
    if places.sees_R1QM is not None:
        q_RHQK = _laid_out(q_XHK[num_prefix:], places.branch_at, R, Q)
        y_RHQK = functional.scaled_dot_product_attention(
            q_RHQK, k_RGMK, v_RGMK, attn_mask=places.sees_R1QM, enable_gqa=is_grouped
        )
        y_XC = torch.cat((y_XC, _taken_back(y_RHQK, places.branch_at)))
    return attention.c_proj(y_XC[None])


def _laid_out(flat_XHK: torch.Tensor, at_X: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
    """Heads of flat tokens in padded rows, zeros elsewhere: (X,H,K) -> (R,H,width,K)."""
    padded = flat_XHK.new_zeros(num_rows * width, *flat_XHK.shape[1:])
    padded[at_X] = flat_XHK
    return padded.view(num_rows, width, *flat_XHK.shape[1:]).transpose(1, 2)


def _taken_back(padded_RHTK: torch.Tensor, at_X: torch.Tensor) -> torch.Tensor:
    """The flat tokens' heads side by side, out of padded rows: (R,H,T,K) -> (X,H*K)."""
    return padded_RHTK.transpose(1, 2).flatten(0, 1)[at_X].flatten(1)


def _losses(model: GPT, x_WD: torch.Tensor, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss in nats (float64) and whether it is the likeliest id (bool) of each scored id, (S,), on the CPU."""
    device = x_WD.device
    from_S, targets_S = torch.from_numpy(packed.predicted_from_S), torch.from_numpy(packed.targets_S)
    order = torch.argsort(from_S, stable=True)
    sorted_from, sorted_targets = from_S[order], targets_S[order]
    rows = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
    edges = torch.searchsorted(sorted_from, torch.arange(0, len(x_WD) + rows, rows))
    nats, greedy = [], []
    for i, start in enumerate(range(0, len(x_WD), rows)):
        z_WV = model.logits(x_WD[start : start + rows])
        part = slice(int(edges[i]), int(edges[i + 1]))
        row, target = (sorted_from[part] - start).to(device), sorted_targets[part].to(device)
        best_W, total_W = z_WV.argmax(-1), torch.logsumexp(z_WV, -1)
        nats.append((total_W[row] - z_WV[row, target]).cpu())
        greedy.append((best_W[row] == target).cpu())
    nats_S, greedy_S = torch.empty(len(order), dtype=torch.float64), torch.empty(len(order), dtype=torch.bool)
    nats_S[order] = torch.cat(nats).double()
    greedy_S[order] = torch.cat(greedy)
    return nats_S, greedy_S
