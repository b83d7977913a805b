"""Claims of recipes/explain/walk.py: every number is the model's own. Oracles: hooks of this test's own, numpy in float64,
torch's FLOP counter, and arithmetic by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from firstlight.model import attention
from firstlight.model.init import build_gpt
from firstlight.recipes.explain.facts import Stage
from firstlight.recipes.explain.walk import attention_map, describe_head, score_of, stats_of, walk_text
from firstlight.train.loss import token_losses

MODULES = {
    "q": "attn.c_q", "k": "attn.c_k", "v": "attn.c_v", "attn_out": "attn.c_proj", "up": "mlp.c_fc",
    "mlp_out": "mlp.c_proj", "gate": "attn.value_gate", "mlp_gate": "mlp.c_gate",
}  # fmt: skip


def stages_of(case: Any) -> dict[str, Stage]:
    return {stage.key: stage for stage in case.walk.stages}


def outputs_of(case: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Outputs of all modules by path, and the logits, of a forward pass of this test's own."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out))
        for name, module in case.model.named_modules()
        if name
    ]
    logits = case.model(case.inputs_BT)
    for handle in handles:
        handle.remove()
    return seen, logits


def norm64(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def same(stage: Stage, tensor: Any) -> None:
    """The stage's shape, bytes and moments are those of a tensor (or of the same numbers in float64)."""
    x = np.asarray(tensor, dtype=np.float64)
    assert stage.shape == x.shape, stage.key
    assert stage.stats is not None
    found = (stage.stats.mean, stage.stats.std, stage.stats.rms, stage.stats.low, stage.stats.high)
    wanted = (x.mean(), x.std(), np.sqrt((x**2).mean()), x.min(), x.max())
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5), stage.key
    assert stage.stats.zero_frac == pytest.approx((x == 0).mean(), abs=1e-9), stage.key
    if isinstance(tensor, torch.Tensor):
        assert stage.num_bytes == tensor.nbytes, stage.key


def test_every_tensor_of_a_module_is_what_a_hook_sees(case) -> None:
    stages, (seen, logits) = stages_of(case), outputs_of(case)
    same(stages["embedding"], seen["transformer.wte"])
    same(stages["scores"], seen["lm_head"])
    same(stages["logits"], logits)
    assert stages["ids"].num_bytes == case.inputs_BT.nbytes
    checked = 0
    for i in range(case.config.n_layer):
        same(stages[f"h.{i}.out"], seen[f"transformer.h.{i}"])
        for key, path in MODULES.items():
            name = f"transformer.h.{i}.{path}"
            assert (name in seen) == (f"h.{i}.{key}" in stages)
            if name in seen:
                same(stages[f"h.{i}.{key}"], seen[name])
                checked += 1
        if f"h.{i}.value_embed" in stages:
            same(stages[f"h.{i}.value_embed"], seen[f"transformer.value_embeds.{i}"])
    assert checked == {"classic": 18, "modern": 20, "portable": 21}[case.preset]
    assert (case.walk.cap_low, case.walk.cap_high) == (float(seen["lm_head"].min()), float(seen["lm_head"].max()))


def test_every_tensor_between_the_modules_is_what_numpy_makes_of_them(case) -> None:
    stages, (seen, _) = stages_of(case), outputs_of(case)
    x = seen["transformer.wte"].double().numpy()
    x = norm64(x) if case.config.embed_norm else x
    for i in range(case.config.n_layer):
        at, block = f"h.{i}.", f"transformer.h.{i}."
        same(stages[f"{at}in"], x)
        same(stages[f"{at}attn_norm"], norm64(x))
        mid = x + seen[f"{block}attn.c_proj"].double().numpy()
        same(stages[f"{at}mid"], mid)
        same(stages[f"{at}mlp_norm"], norm64(mid))
        up = seen[f"{block}mlp.c_fc"].double().numpy()
        if case.config.mlp == "swiglu":
            gate = seen[f"{block}mlp.c_gate"].double().numpy()
            same(stages[f"{at}act"], gate / (1 + np.exp(-gate)) * up)
        else:
            same(stages[f"{at}act"], np.maximum(up, 0) ** 2)
        x = mid + seen[f"{block}mlp.c_proj"].double().numpy()
        same(stages[f"{at}out"], x)
    same(stages["hidden"], norm64(x))
    if case.config.softcap:
        z = seen["lm_head"].double().numpy()
        same(stages["logits"], 15 * np.tanh(z / 15))


def test_the_maps_are_those_of_the_queries_and_keys_that_the_kernel_was_given(case, monkeypatch) -> None:
    given: list[tuple[torch.Tensor, ...]] = []
    real = attention.attend

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        y = real(q, k, v, **options)
        given.append((q, k, v, y))
        return y

    # The walk is of the kernel that the model takes, what is compared of one that takes turned heads.
    monkeypatch.setattr(attention, "attend", spy)
    monkeypatch.setattr(case.model, "attention_kernel", "sdpa")
    case.model(case.inputs_BT)
    assert len(given) == case.config.n_layer
    stages, T = stages_of(case), len(case.ids)
    for layer, (q, k, v, y) in enumerate(given):
        same(stages[f"h.{layer}.q_turned"], q)
        same(stages[f"h.{layer}.k_turned"], k)
        same(stages[f"h.{layer}.mixed"], y.transpose(1, 2).flatten(2))
        if f"h.{layer}.v_mixed" in stages:
            same(stages[f"h.{layer}.v_mixed"], v.transpose(1, 2).flatten(2))
        for h in range(case.config.n_head):
            found = next(head for head in case.walk.heads if (head.layer, head.head) == (layer, h))
            shared = h // (case.config.n_head // case.config.n_kv_head)
            scores = q[0, h].double().numpy() @ k[0, shared].double().numpy().T / math.sqrt(case.config.head_dim)
            e = np.exp(scores) * np.tril(np.ones((T, T)))
            weights = e / e.sum(-1, keepdims=True)
            assert [len(row) for row in found.weights] == list(range(1, T + 1))
            for t, row in enumerate(found.weights):
                assert row == pytest.approx(weights[t, : t + 1], abs=2e-6)
            # The map times the values is what the kernel gave.
            assert weights @ v[0, shared].double().numpy() == pytest.approx(y[0, h].double().numpy(), abs=1e-5)
            entropy = -sum(p * math.log2(p) for row in weights for p in row if p > 0) / T
            assert found.entropy_bits == pytest.approx(entropy, rel=1e-4)
            assert found.on_first == pytest.approx(weights[1:, 0].mean(), rel=1e-4)
            assert found.on_self == pytest.approx(np.diag(weights)[1:].mean(), rel=1e-4)
            assert found.on_previous == pytest.approx(np.diag(weights, -1).mean(), rel=1e-4)
    assert len(given) == case.config.n_layer
    assert 0 < case.walk.attention_error < 1e-5


def test_a_map_that_were_not_the_models_would_show(case, monkeypatch) -> None:
    from firstlight.recipes.explain import walk

    monkeypatch.setattr(walk, "attention_map", lambda q, k: attention_map(q, k.flip(2)))
    assert walk_text(case.model, case.tokenizer, case.ids).attention_error > 1e-2


def test_gates_are_twice_the_sigmoid_of_what_a_hook_sees(case) -> None:
    seen, _ = outputs_of(case)
    wanted = {
        (i, g): 2 / (1 + np.exp(-seen[f"transformer.h.{i}.attn.value_gate"][0, :, g].double().numpy()))
        for i in case.config.value_embed_layers
        for g in range(case.config.n_kv_head)
    }
    assert {(gate.layer, gate.head) for gate in case.walk.gates} == set(wanted)
    for gate in case.walk.gates:
        assert gate.values == pytest.approx(wanted[gate.layer, gate.head], rel=1e-5)


def test_losses_ranks_and_guesses_against_torch_in_float64_and_the_trainings_loss(case) -> None:
    logits = case.model(case.inputs_BT)[0].double()
    targets = torch.tensor(case.ids)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
    found = [position.loss_nats for position in case.walk.positions]
    assert found == pytest.approx(wanted, rel=1e-9)
    trained = token_losses(
        case.model.hidden(case.inputs_BT), case.model.lm_head.weight, targets[None], softcap=case.config.softcap,
        compute_dtype=torch.float32,
    )  # fmt: skip
    assert found == pytest.approx(trained[0].tolist(), rel=1e-4, abs=1e-5)
    same(stages_of(case)["loss"], np.array(wanted)[None])
    for position, row in zip(case.walk.positions, logits.numpy(), strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = np.argsort(-p)
        assert [guess.id for guess in position.top] == order[:5].tolist()
        assert [guess.probability for guess in position.top] == pytest.approx(p[order[:5]], rel=1e-9)
        assert position.probability == pytest.approx(p[position.target.id], rel=1e-9)
        assert order[position.rank - 1] == position.target.id
        assert position.loss_nats == pytest.approx(-math.log(p[position.target.id]), rel=1e-9)
    assert [position.input.id for position in case.walk.positions] == case.inputs_BT[0].tolist()
    assert [position.target.id for position in case.walk.positions] == case.ids


def test_the_score_of_the_text_by_hand(case) -> None:
    score = case.walk.score
    nats = sum(position.loss_nats for position in case.walk.positions)
    assert score.num_bytes == len(case.text.encode())
    assert score.num_tokens == len(case.ids)
    assert score.nats == pytest.approx(nats, rel=1e-12)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len(case.text.encode()), rel=1e-12)


def test_bits_per_byte_and_the_listing_that_averages_wrongly_by_hand() -> None:
    # Two batches of two tokens: means 1 and 4 nats, 3 and 7 bytes.
    score = score_of([0.5, 1.5, 3.0, 5.0], [1, 2, 3, 4])
    assert score.nats == 10.0
    assert score.bits_per_byte == pytest.approx(10 / (0.6931471805599453 * 10))
    assert score.seed_bpb == pytest.approx((1 * 3 + 4 * 7) / 10 / 0.6931471805599453)
    assert score.bits_per_token == pytest.approx(2.5 / 0.6931471805599453)
    assert score.perplexity == pytest.approx(12.182493960703473)
    assert score_of([2.0], [3]).seed_batches == 1


def test_flops_of_the_stages_are_those_that_torch_counts(case, monkeypatch) -> None:
    # The one that torch can look into.
    monkeypatch.setattr(case.model, "attention_kernel", "sdpa")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        case.model(case.inputs_BT)
    flops = {stage.key: stage.flops for stage in case.walk.stages}
    counted = counter.get_flop_counts()
    assert sum(flops.values()) == counter.get_total_flops()
    assert flops["scores"] == sum(counted["GPT.lm_head"].values())
    for i in range(case.config.n_layer):
        at = f"h.{i}."
        mlp = sum(flops.get(at + key, 0) for key in ("mlp_gate", "up", "act", "mlp_out"))
        block = sum(n for key, n in flops.items() if key.startswith(at))
        assert mlp == sum(counted[f"GPT.transformer.h.{i}.mlp"].values())
        assert block - mlp == sum(counted[f"GPT.transformer.h.{i}.attn"].values())
        for key, path in MODULES.items():
            if at + key in flops:
                assert flops[at + key] == sum(counted[f"GPT.transformer.h.{i}.{path}"].values())


def test_a_model_in_bfloat16_is_walked_in_bfloat16(case) -> None:
    model = build_gpt(case.config, compute_dtype=torch.bfloat16, seed=0)
    model.load_state_dict(case.model.state_dict())
    walk = walk_text(model, case.tokenizer, case.ids)
    stages = {stage.key: stage for stage in walk.stages}
    assert (walk.dtype, stages["h.0.q"].dtype, stages["embedding"].dtype) == ("bf16", "bf16", "fp32")
    assert stages["h.0.q"].num_bytes * 2 == stages_of(case)["h.0.q"].num_bytes
    # bfloat16 has 8 bits: the kernel's own rounding.
    assert walk.attention_error < 0.1
    assert walk.score.nats == pytest.approx(case.walk.score.nats, rel=0.1)


def test_the_walk_leaves_no_hook_and_no_gradient(case) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.model.modules())
    first = case.model(case.inputs_BT)
    walk_text(case.model, case.tokenizer, case.ids)
    assert torch.equal(first, case.model(case.inputs_BT))


def test_moments_by_hand() -> None:
    stats = stats_of(torch.tensor([0.0, 3.0, 0.0, -1.0]))
    assert (stats.mean, stats.low, stats.high, stats.zero_frac) == (0.5, -1.0, 3.0, 0.5)
    assert stats.std == pytest.approx(1.5)
    assert stats.rms == pytest.approx(math.sqrt(2.5))


def test_a_head_that_looks_at_the_token_before_by_hand() -> None:
    head = describe_head(2, 1, torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [0, 1.0, 0]]))
    assert (head.layer, head.head) == (2, 1)
    assert head.weights == ((1.0,), (0.75, 0.25), (0.0, 1.0, 0.0))
    assert head.entropy_bits == pytest.approx((0.75 * math.log2(4 / 3) + 0.25 * 2) / 3)
    assert (head.on_first, head.on_self, head.on_previous) == (0.375, 0.125, 0.875)
    assert head.even_bits == pytest.approx((0 + 1 + math.log2(3)) / 3)
