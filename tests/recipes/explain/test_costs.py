"""Claims of recipes/explain/costs.py against real tensors, a real optimizer, `count`, and arithmetic by hand."""

from __future__ import annotations

import pytest
import torch

from firstlight.model import count
from firstlight.model.config import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper, ramp, trapezoid
from firstlight.recipes.explain import costs
from firstlight.runtime.context import open_runtime
from firstlight.train import loss as loss_layer
from firstlight.train.horizon import Curve
from firstlight.train.loss import summed_cross_entropy

RATES = {"embedding_lr": 0.3, "unembedding_lr": 0.005, "matrix_lr": 0.02}


def test_weights_are_the_models_tensors_one_by_one(case) -> None:
    weights = costs.describe_weights(case.config, **RATES)
    real = list(case.model.named_parameters())
    assert [(w.name, w.shape, w.num_params, w.num_bytes) for w in weights] == [
        (name, tuple(tensor.shape), tensor.numel(), tensor.nbytes) for name, tensor in real
    ]
    assert {w.dtype for w in weights} == {"fp32"} == {str(t.dtype).replace("torch.float32", "fp32") for _, t in real}
    kinds: dict[str, int] = {}
    for weight in weights:
        kinds[weight.kind] = kinds.get(weight.kind, 0) + weight.num_params
    assert kinds == count.num_params(case.config)


def test_memory_is_that_of_real_tensors_after_a_step(case) -> None:
    model = build_gpt(case.config, seed=0)
    B, T = 2, case.config.max_seq_len
    ids_BT = torch.arange(B * T).remainder(case.config.vocab_size).view(B, T)
    summed_cross_entropy(
        model.hidden(ids_BT), model.lm_head.weight, ids_BT, softcap=case.config.softcap, compute_dtype=torch.float32
    ).backward()
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        optimizer = MuonAdamW(make_groups(model.named_parameters(), **RATES), runtime)
        optimizer.step(Hyper())
    state = optimizer.state_tensors()
    parts = costs.memory_parts(
        case.config, batch_rows=B, seq_len=T, compute_dtype=torch.float32, attention_kernel="sdpa"
    )
    found = {part.name: part.amount for part in parts}
    assert found["weights"] == sum(p.nbytes for p in model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    # One step counter a parameter may be kept beside the running means.
    held = sum(t.nbytes for t in state.values() if t.numel() > 1)
    assert found["optimizer"] == held
    weights = costs.describe_weights(case.config, **RATES)
    assert sum(w.state_bytes for w in weights) == held
    assert found["activations"] == count.activation_bytes(case.config, batch_rows=B, seq_len=T, compute_bytes=4)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held_output = model.hidden(ids_BT)
    assert held_output.requires_grad
    assert found["activations"] == pytest.approx(sum(kept.values()), rel=0.15)
    assert found["loss chunk"] == B * T * case.config.vocab_size * 4


@pytest.mark.parametrize("shard_weights", [False, True])
@pytest.mark.parametrize(("world_size", "device_type"), [(1, "cpu"), (2, "cpu"), (8, "cuda")])
def test_parts_that_the_batch_does_not_change_are_the_plans(
    case, world_size: int, device_type: str, shard_weights: bool
) -> None:
    options: dict = {"world_size": world_size, "device_type": device_type, "shard_weights": shard_weights}
    parts = costs.memory_parts(
        case.config, batch_rows=2, seq_len=32, compute_dtype=torch.bfloat16, attention_kernel="sdpa", **options
    )
    fixed = [part for part in parts if part.name not in ("activations", "loss chunk")]
    assert sum(part.amount for part in fixed) == count.fixed_train_bytes(case.config, **options)
    assert len(fixed) == (1 if shard_weights and world_size > 1 else 4 if world_size > 1 else 3)


def test_a_loss_chunk_is_what_the_loss_layer_takes(monkeypatch) -> None:
    config = GPTConfig(vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=8, max_seq_len=256)
    monkeypatch.setattr(loss_layer, "CHUNK_BYTES", 128 * 4 * 300)
    sizes = []

    def spy(z_RV: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(z_RV.numel() * z_RV.element_size())
        return loss_layer.loss_kernel(z_RV, *rest)  # pyrefly: ignore

    ids = torch.zeros(2, 256, dtype=torch.long)
    x, head = torch.randn(2, 256, 8), torch.randn(300, 8)
    loss_layer._losses(x.flatten(0, 1), head, ids.flatten(), torch.ones(512), 0.0, torch.float32, 128, spy)
    parts = costs.memory_parts(config, batch_rows=2, seq_len=256, compute_dtype=torch.float32, attention_kernel="sdpa")
    assert parts[-1].amount == 128 * 300 * 4 == max(sizes)


def test_rates_are_the_groups_with_muons_shape_factor(case) -> None:
    weights = costs.describe_weights(case.config, **RATES)
    groups = make_groups(build_gpt(case.config, seed=0).named_parameters(), **RATES)
    group_of = {name: group for group in groups for name, _ in group.parameters}
    for weight in weights:
        group = group_of[weight.name]
        is_block_matrix = weight.name.endswith(("c_q.weight", "c_k.weight", "c_v.weight", "c_proj.weight", "c_fc.weight", "c_gate.weight"))  # fmt: skip
        assert (weight.rule == "Muon") == is_block_matrix
        assert weight.group == group.name
        factor = 1.0
        if is_block_matrix:
            factor = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
        assert weight.lr == pytest.approx(group.lr * factor)
    by_name = {weight.name: weight for weight in weights}
    wide = {"portable": 192}.get(case.preset, 256)
    assert by_name["transformer.h.0.mlp.c_fc.weight"].lr == pytest.approx(0.02 * (wide / 64) ** 0.5)
    assert by_name["transformer.wte.weight"].lr == 0.3
    assert by_name["lm_head.weight"].lr == 0.005


def test_the_start_is_said_as_a_new_model_has_it(case) -> None:
    model = dict(build_gpt(case.config, seed=0).named_parameters())
    for weight in costs.describe_weights(case.config, **RATES):
        values = model[weight.name]
        if weight.start.startswith("all "):
            assert torch.all(values == float(weight.start.removeprefix("all ")))
        else:
            std = float(weight.start.split("std ")[1])
            assert float(values.detach().std()) == pytest.approx(std, rel=0.15)


def test_flop_parts_are_three_times_the_forward_stages_and_add_up_to_count(case) -> None:
    T = case.config.max_seq_len
    parts = {part.name: part.amount for part in costs.flop_parts(case.config, seq_len=T)}
    assert sum(parts.values()) == count.flops_per_token(case.config, T)
    stages = costs.describe_stages(case.config, batch_rows=1, seq_len=T, compute_dtype=torch.float32)
    flops = {"MLP": 0, "attention matrices": 0, "attention scores": 0, "head": 0, "gates": 0}
    for stage in stages:
        key = stage.key.rsplit(".", 1)[-1]
        name = (
            "MLP" if key in ("up", "mlp_gate", "mlp_out") else "head" if key == "scores"
            else "attention scores" if key in ("map", "mixed") else "gates" if key in ("gate", "smear")
            else "attention matrices"
        )  # fmt: skip
        flops[name] += stage.flops
    for name, amount in parts.items():
        assert 3 * flops[name] == amount * T, name
    assert flops["gates"] == len(case.config.value_embed_layers) * 2 * T * 16 * case.config.n_kv_head


@pytest.mark.parametrize("depth", [1, 5, 26])
def test_a_model_of_any_depth_costs_arithmetic_only(depth: int) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=32768, max_seq_len=2048, preset="modern")
    weights = costs.describe_weights(config, **RATES)
    assert sum(w.num_params for w in weights) == sum(count.num_params(config).values())
    stages = costs.describe_stages(config, batch_rows=4, seq_len=2048, compute_dtype=torch.bfloat16)
    total = sum(stage.flops for stage in stages)
    # Per token a third of training, and the gates, which `count` leaves out.
    assert total / (4 * 2048) == pytest.approx(count.flops_per_token(config, 2048) / 3, rel=1e-3)
    logits = next(stage for stage in stages if stage.key == "logits")
    assert logits.num_bytes == 4 * 2048 * 32768 * 4
    assert len({stage.key for stage in stages}) == len(stages)


def test_the_schedule_is_the_trainings() -> None:
    curve = Curve(0.1, 0.5, 0.05, 0.85, 0.95, 0.0, 1.0)
    points = costs.schedule_points(curve, total=40.0, last=39.0, num_points=40)
    assert [round(40 * point.done, 6) for point in points] == list(range(40))
    for step, point in enumerate(points):
        assert point.lr_multiplier == trapezoid(step, total=40, warmup=4, warmdown=20, final_frac=0.05)
        assert point.momentum == ramp(step, start=0.85, end=0.95, duration=4)
    # By hand: the first of 4 warm-up steps, the middle, and the last step, one twentieth before the end of the fall.
    assert points[0].lr_multiplier == 0.25
    assert points[20].lr_multiplier == 1.0
    assert points[39].lr_multiplier == pytest.approx(0.05 + 0.95 * 0.05)


def test_options_that_no_preset_has_are_described_too() -> None:
    config = GPTConfig(300, 2, 2, 2, 32, 16, smear=True, residual_scales=True, backout=True, value_embed_every=1)
    weights = costs.describe_weights(config, **RATES)
    assert sum(w.num_params for w in weights) == sum(count.num_params(config).values())
    assert {w.kind for w in weights if w.name.startswith(("smear", "backout", "residual", "x0"))} == {"scalars"}
    stages = {s.key: s for s in costs.describe_stages(config, batch_rows=1, seq_len=8, compute_dtype=torch.float32)}
    assert stages["smear"].flops == 2 * 8 * 16
    assert stages["h.1.in"].how.startswith("a · ")
