"""The options of the preset `modern`, against the same model written out for one token after another in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from firstlight.infer.cache import KVCache
from firstlight.model import count
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT
from firstlight.model.init import build_gpt

SIZES = GPTConfig(vocab_size=61, n_layer=3, n_head=4, n_kv_head=2, n_embd=48, max_seq_len=24)
OPTIONS = {
    "value_embed_every": {"value_embed_every": 2},
    "residual_scales": {"residual_scales": True},
    "smear": {"smear": True},
    "backout": {"backout": True},
    "qk_gain": {"qk_gain": 1.3},
}
OPTIONS["all"] = {name: value for option in OPTIONS.values() for name, value in option.items()}
EACH = pytest.mark.parametrize("option", OPTIONS)


def random_gpt(option: str, *, dtype: torch.dtype = torch.float32) -> GPT:
    """A model whose every weight matters (at the start some are zero)."""
    model = build_gpt(replace(SIZES, **OPTIONS[option]), seed=0, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
    return model


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, SIZES.vocab_size, shape, generator=torch.Generator().manual_seed(3))


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x_HK: torch.Tensor, t: int, base: float) -> torch.Tensor:
    J = x_HK.shape[1] // 2
    angles_J = t / base ** (torch.arange(J, dtype=torch.float64) / J)
    a, b = x_HK[:, :J], x_HK[:, J:]
    return torch.cat([a * angles_J.cos() + b * angles_J.sin(), b * angles_J.cos() - a * angles_J.sin()], dim=1)


def written_out(model: GPT, ids: list[int]) -> torch.Tensor:
    """Logits (T,V) of one row."""
    config = model.config
    w = {name: weight.detach().double() for name, weight in model.named_parameters()}
    embedded = []
    for i in ids:
        x = norm(w["transformer.wte.weight"][i])
        embedded.append(x)
    x0 = []
    for t, x in enumerate(embedded):
        if config.smear and t > 0:
            gate = torch.sigmoid(w["smear_gate.weight"][0] @ x[: w["smear_gate.weight"].shape[1]])
            x = x + w["smear_scale"][0] * gate * embedded[t - 1]
        x0.append(x)
    keys: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(config.n_layer)}
    values: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(config.n_layer)}
    logits = []
    for t, i in enumerate(ids):
        x = x0[t]
        middle = None
        for layer in range(config.n_layer):
            h = f"transformer.h.{layer}."
            if config.residual_scales:
                x = w["residual_scales"][layer] * x + w["x0_scales"][layer] * x0[t]
            z = norm(x)
            heads = {}
            for part, num in (("q", config.n_head), ("k", config.n_kv_head), ("v", config.n_kv_head)):
                heads[part] = (w[f"{h}attn.c_{part}.weight"] @ z).view(num, config.head_dim)
            if layer in config.value_embed_layers:
                gate = 2 * torch.sigmoid(
                    w[f"{h}attn.value_gate.weight"] @ z[: w[f"{h}attn.value_gate.weight"].shape[1]]
                )
                looked_up = w[f"transformer.value_embeds.{layer}.weight"][i].view_as(heads["v"])
                heads["v"] = heads["v"] + gate[:, None] * looked_up
            q = norm(turned(heads["q"], t, config.rope_base)) * config.qk_gain
            keys[layer].append(norm(turned(heads["k"], t, config.rope_base)) * config.qk_gain)
            values[layer].append(heads["v"])
            out = []
            for head in range(config.n_head):
                shared = head // (config.n_head // config.n_kv_head)
                scores = torch.stack([k[shared] @ q[head] for k in keys[layer]]) / config.head_dim**0.5
                out.append(sum(p * v[shared] for p, v in zip(scores.softmax(0), values[layer], strict=True)))
            x = x + w[f"{h}attn.c_proj.weight"] @ torch.cat(out)
            x = x + w[f"{h}mlp.c_proj.weight"] @ (w[f"{h}mlp.c_fc.weight"] @ norm(x)).relu().square()
            if layer == config.n_layer // 2:
                middle = x
        if config.backout:
            x = x - w["backout_scale"][0] * middle
        z = w["lm_head.weight"] @ norm(x)
        logits.append(config.softcap * torch.tanh(z / config.softcap))
    return torch.stack(logits)


@EACH
@pytest.mark.parametrize("length", [1, 2, 17])
def test_logits_are_those_of_the_model_written_out(option: str, length: int) -> None:
    model = random_gpt(option)
    ids_BT = random_ids(2, length)
    with torch.no_grad():
        logits_BTV = model(ids_BT)
    for ids, logits_TV in zip(ids_BT.tolist(), logits_BTV, strict=True):
        expected_TV = written_out(model, ids)
        assert expected_TV.abs().max() > 0.5
        assert (logits_TV - expected_TV).abs().max() < 1e-4


def test_each_option_changes_the_logits() -> None:
    ids_BT = random_ids(1, 9)
    model = random_gpt("all")
    with torch.no_grad():
        everything = model(ids_BT)
        for name in ("smear_scale", "backout_scale", "x0_scales"):
            kept = getattr(model, name).clone()
            getattr(model, name).zero_()
            assert not torch.allclose(model(ids_BT), everything), name
            getattr(model, name).copy_(kept)
        for table in model.transformer.value_embeds.values():
            kept = table.weight.clone()
            table.weight.zero_()
            assert not torch.allclose(model(ids_BT), everything)
            table.weight.copy_(kept)


@EACH
@pytest.mark.parametrize("pieces", [(17,), (1,) * 17, (5, 1, 1, 10), (16, 1)])
def test_a_cache_gives_the_logits_of_the_whole_row(option: str, pieces: tuple[int, ...]) -> None:
    model = random_gpt(option)
    ids_BT = random_ids(3, 17)
    cache = KVCache.empty(model.config, batch_rows=3, max_len=20, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        parts = [model(piece_BT, cache) for piece_BT in ids_BT.split(pieces, dim=1)]
        assert (torch.cat(parts, dim=1) - model(ids_BT)).abs().max() < 1e-5


def test_a_repeated_cache_remembers_the_token_before() -> None:
    model = random_gpt("all")
    ids_BT = random_ids(1, 6)
    cache = KVCache.empty(model.config, batch_rows=1, max_len=8, dtype=torch.float32, device="cpu")
    next_B1 = random_ids(3, 1)
    with torch.no_grad():
        model(ids_BT, cache)
        logits_BV = model(next_B1, cache.repeat_rows(3))[:, -1]
        expected_BV = model(torch.cat((ids_BT.expand(3, -1), next_B1), dim=1))[:, -1]
    assert (logits_BV - expected_BV).abs().max() < 1e-5


@EACH
def test_no_logit_depends_on_a_later_id(option: str) -> None:
    model = random_gpt(option)
    ids_BT = random_ids(1, 12)
    changed_BT = ids_BT.clone()
    changed_BT[0, 7] = (ids_BT[0, 7] + 1) % SIZES.vocab_size
    with torch.no_grad():
        before, after = model(ids_BT), model(changed_BT)
    assert torch.equal(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7:], after[0, 7:])


@EACH
def test_every_parameter_gets_a_gradient_at_the_start_or_soon(option: str) -> None:
    model = random_gpt(option)
    ids_BT = random_ids(2, 20)
    model(ids_BT).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@EACH
def test_parameters_are_counted(option: str) -> None:
    config = replace(SIZES, **OPTIONS[option])
    assert sum(count.num_params(config).values()) == sum(p.numel() for p in GPT(config).parameters())


@EACH
def test_bf16_is_near_float32(option: str) -> None:
    ids_BT = random_ids(2, 20)
    with torch.no_grad():
        exact, rounded = random_gpt(option)(ids_BT), random_gpt(option, dtype=torch.bfloat16)(ids_BT)
    assert (exact - rounded).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_activations_give_the_same_gradients(recompute: bool) -> None:
    model = random_gpt("all")
    model.checkpoint_activations = recompute
    model(random_ids(2, 11)).square().mean().backward()
    plain = random_gpt("all")
    plain(random_ids(2, 11)).square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6), name
