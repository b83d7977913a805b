"""The whole optimizer: clipping, refusal of non-finite gradients, state, determinism, two processes."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn

from firstlight.errors import CheckpointError
from firstlight.optim import muon
from firstlight.optim.groups import MuonGroup, make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime

# Odd counts and shapes on purpose: 3 square matrices, a wide one, a tall one, a vocabulary of 37.
SHAPES = {
    "transformer.wte.weight": (37, 8),
    "transformer.h.0.attn.c_q.weight": (8, 8),
    "transformer.h.0.attn.c_k.weight": (8, 8),
    "transformer.h.0.attn.c_v.weight": (8, 8),
    "transformer.h.0.mlp.c_fc.weight": (24, 8),
    "transformer.h.0.mlp.c_proj.weight": (8, 24),
    "gate": (5,),
    "lm_head.weight": (37, 8),
}
CPU = Runtime(device=torch.device("cpu"))


def make_parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def make_grads(seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def make_optimizer(parameters, runtime=CPU, **kwargs):
    groups = make_groups(parameters.items(), cautious=True, variance_beta2=0.9, weight_decay_scale_adamw=0.5)
    return MuonAdamW(groups, runtime, **kwargs)


def take_step(parameters, optimizer, grads, hyper=None, grad_scale=1.0):
    for name, parameter in parameters.items():
        parameter.grad = grads[name].clone()
    return optimizer.step(hyper or Hyper(weight_decay=0.1), grad_scale=grad_scale)


def snapshot(parameters, optimizer):
    tensors = {name: p.detach().clone() for name, p in parameters.items()}
    return tensors | {name: t.clone() for name, t in optimizer.state_tensors().items()}


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_norm_is_over_everything_scaled_and_before_clipping():
    parameters = make_parameters()
    grads = make_grads(0)
    result = take_step(parameters, make_optimizer(parameters), grads, Hyper(grad_clip=0.01), grad_scale=0.25)
    by_hand = 0.25 * math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    assert result.applied
    assert result.grad_norm == pytest.approx(by_hand, rel=1e-6)


def test_clipping_equals_scaling_the_gradients_by_hand():
    a, b = make_parameters(), make_parameters()
    opt_a, opt_b = make_optimizer(a), make_optimizer(b)
    for step in range(3):
        grads = make_grads(step)
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
        take_step(a, opt_a, grads, Hyper(grad_clip=1.0))
        take_step(b, opt_b, {n: g / norm for n, g in grads.items()}, Hyper(grad_clip=0.0))
    for name in a:
        assert torch.allclose(a[name], b[name], atol=2e-5), name
    for name, moment in opt_a.state_tensors().items():
        assert torch.allclose(moment, opt_b.state_tensors()[name], rtol=1e-4, atol=1e-7), name


def test_small_gradients_are_not_clipped_and_zero_turns_clipping_off():
    for hyper in (Hyper(grad_clip=1e9), Hyper(grad_clip=0.0)):
        a, b = make_parameters(), make_parameters()
        opt_a = make_optimizer(a)
        take_step(a, opt_a, make_grads(0), hyper)
        take_step(b, make_optimizer(b), make_grads(0), Hyper(grad_clip=1e8))
        assert_bit_equal(
            snapshot(a, opt_a), snapshot(b, opt_a) | {n: t.clone() for n, t in opt_a.state_tensors().items()}
        )


def test_clipping_does_not_change_muons_direction_without_momentum():
    a, b = make_parameters(), make_parameters()
    numbers = {"momentum": 0.0}
    take_step(a, make_optimizer(a), make_grads(0), Hyper(grad_clip=0.5, **numbers))
    take_step(b, make_optimizer(b), make_grads(0), Hyper(grad_clip=0.0, **numbers))
    for name in a:
        if name.startswith("transformer.h."):
            assert torch.allclose(a[name], b[name], atol=1e-5), name


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["transformer.h.0.mlp.c_fc.weight", "transformer.wte.weight", "gate"])
def test_a_nonfinite_gradient_leaves_every_bit_unchanged_and_later_steps_go_on(poison, where):
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    take_step(parameters, optimizer, make_grads(0))
    before = snapshot(parameters, optimizer)
    grads = make_grads(1)
    grads[where].view(-1)[3] = poison
    result = take_step(parameters, optimizer, grads)
    assert not result.applied
    assert not math.isfinite(result.grad_norm)
    assert_bit_equal(before, snapshot(parameters, optimizer))
    assert optimizer.num_updates == 1

    never_poisoned = make_parameters()
    other = make_optimizer(never_poisoned)
    take_step(never_poisoned, other, make_grads(0))
    take_step(never_poisoned, other, make_grads(2))
    assert take_step(parameters, optimizer, make_grads(2)).applied
    assert_bit_equal(snapshot(parameters, optimizer), snapshot(never_poisoned, other))


def test_same_gradients_give_the_same_bits_and_draw_no_random_number():
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        parameters = make_parameters()
        optimizer = make_optimizer(parameters)
        for step in range(4):
            take_step(parameters, optimizer, make_grads(step))
        assert torch.equal(state, torch.get_rng_state())
        results.append(snapshot(parameters, optimizer))
    assert_bit_equal(*results)


def test_muon_half_equals_torch_optim_muon_and_adamw_half_equals_torch_optim_adamw():
    parameters = make_parameters()
    reference = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    groups = make_groups(parameters.items(), embedding_lr=0.01, unembedding_lr=0.01, scalar_lr=0.01)
    optimizer = MuonAdamW(groups, CPU, muon_dtype=torch.bfloat16, muon_coefficients=muon.CLASSIC_QUINTIC)
    matrices = [p for name, p in reference.items() if name.startswith("transformer.h.")]
    others = [p for name, p in reference.items() if not name.startswith("transformer.h.")]
    torch_muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1)
    torch_adamw = torch.optim.AdamW(others, lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, foreach=False)
    for step in range(20):
        grads = make_grads(step)
        take_step(parameters, optimizer, grads, Hyper(momentum=0.95, weight_decay=0.1, grad_clip=0.0))
        for name, parameter in reference.items():
            parameter.grad = grads[name].clone()
        torch_muon.step()
        torch_adamw.step()
    for name in parameters:
        if name.startswith("transformer.h."):
            assert (parameters[name] - reference[name]).norm() / reference[name].norm() < 5e-3, name
        else:
            assert torch.allclose(parameters[name], reference[name], atol=1e-6), name


def test_rate_multiplier_and_betas_reach_every_group():
    parameters = make_parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    result = take_step(
        parameters, make_optimizer(parameters), make_grads(0), Hyper(lr_multiplier=0.0, weight_decay=1.0)
    )
    assert result.applied
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name
    optimizer = make_optimizer(parameters)
    grads = make_grads(0)
    take_step(parameters, optimizer, grads, Hyper(betas=(0.5, 0.75), grad_clip=0.0))
    state = optimizer.state_tensors()
    assert torch.allclose(state["gate/exp_avg"], 0.5 * grads["gate"])
    assert torch.allclose(state["gate/exp_avg_sq"], 0.25 * grads["gate"].square())


def test_state_goes_to_a_file_and_back_and_continues_bit_equal(tmp_path):
    straight, stopped = make_parameters(), make_parameters()
    opt_straight, opt_stopped = make_optimizer(straight), make_optimizer(stopped)
    for step in range(2):
        take_step(straight, opt_straight, make_grads(step))
        take_step(stopped, opt_stopped, make_grads(step))
    save_file(opt_stopped.state_tensors(), tmp_path / "optimizer.safetensors")
    resumed = make_optimizer(stopped)
    resumed.load_state_tensors(load_file(tmp_path / "optimizer.safetensors"))
    resumed.num_updates = opt_stopped.num_updates
    for step in range(2, 4):
        take_step(straight, opt_straight, make_grads(step))
        take_step(stopped, resumed, make_grads(step))
    assert_bit_equal(snapshot(straight, opt_straight), snapshot(stopped, resumed))


def test_state_is_named_per_parameter():
    names = set(make_optimizer(make_parameters()).state_tensors())
    assert "transformer.h.0.attn.c_q.weight/momentum" in names
    assert "transformer.h.0.mlp.c_fc.weight/second_moment" in names
    assert "lm_head.weight/exp_avg" in names
    assert "gate/exp_avg_sq" in names
    assert len(names) == 2 * len(SHAPES)


def test_a_state_that_does_not_fit_is_refused_by_name_before_anything_changes():
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    take_step(parameters, optimizer, make_grads(0))
    before = snapshot(parameters, optimizer)
    state = {name: t + 1 for name, t in optimizer.state_tensors().items()}
    del state["gate/exp_avg"]
    state["foreign.weight/momentum"] = torch.zeros(2)
    state["lm_head.weight/exp_avg"] = torch.zeros(3, 8)
    with pytest.raises(CheckpointError) as error:
        optimizer.load_state_tensors(state)
    for part in (
        "missing: gate/exp_avg",
        "unknown: foreign.weight/momentum",
        "lm_head.weight/exp_avg",
        "(3, 8)",
        "(37, 8)",
    ):
        assert part in str(error.value)
    assert_bit_equal(before, snapshot(parameters, optimizer))


def test_no_gradient_counts_as_zero_and_moves_no_matrix():
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    before = snapshot(parameters, optimizer)
    result = optimizer.step(Hyper())
    assert result.applied
    assert result.grad_norm == 0
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_equals_eager_while_the_momentum_changes():
    eager, compiled = make_parameters(), make_parameters()
    opt_eager, opt_compiled = make_optimizer(eager), make_optimizer(compiled, compiled=True)
    for step, momentum in enumerate((0.85, 0.9, 0.95)):
        take_step(eager, opt_eager, make_grads(step), Hyper(momentum=momentum))
        take_step(compiled, opt_compiled, make_grads(step), Hyper(momentum=momentum))
    for name, tensor in snapshot(eager, opt_eager).items():
        assert torch.allclose(tensor, snapshot(compiled, opt_compiled)[name], atol=1e-5), name


def test_zero_grad_drops_every_gradient():
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    take_step(parameters, optimizer, make_grads(0))
    optimizer.zero_grad()
    assert all(p.grad is None for p in parameters.values())


def two_ranks(rank, folder, seeds_by_rank, hyper_values, poisoned_step):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    runtime = Runtime(device=torch.device("cpu"), rank=rank, local_rank=rank, world_size=2)
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, runtime)
    norms, applied = [], []
    for step, seeds in enumerate(seeds_by_rank):
        grads = make_grads(seeds[rank])
        if step == poisoned_step and rank == 1:
            grads["transformer.h.0.attn.c_k.weight"][2, 2] = math.nan
        result = take_step(parameters, optimizer, grads, Hyper(**hyper_values), grad_scale=0.5)
        norms.append(result.grad_norm)
        applied.append(float(result.applied))
    saved = snapshot(parameters, optimizer) | {"norms": torch.tensor(norms), "applied": torch.tensor(applied)}
    save_file(saved, f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_equal_one_with_one_global_norm_and_one_verdict(tmp_path):
    seeds_by_rank, hyper_values, poisoned_step = [(0, 1), (2, 3), (4, 5), (6, 7)], {"grad_clip": 1.0}, 2
    mp.spawn(two_ranks, args=(str(tmp_path), seeds_by_rank, hyper_values, poisoned_step), nprocs=2)
    rank0, rank1 = (load_file(tmp_path / f"rank{r}.safetensors") for r in (0, 1))

    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    norms = []
    for step, seeds in enumerate(seeds_by_rank):
        both = [make_grads(seed) for seed in seeds]
        grads = {name: both[0][name] + both[1][name] for name in SHAPES}
        if step == poisoned_step:
            continue
        norms.append(float(take_step(parameters, optimizer, grads, Hyper(**hyper_values), grad_scale=0.5).grad_norm))

    assert_bit_equal({n: t for n, t in rank0.items() if n != "norms"}, {n: t for n, t in rank1.items() if n != "norms"})
    assert rank0["applied"].tolist() == [1, 1, 0, 1]
    assert np.delete(rank0["norms"].numpy(), poisoned_step) == pytest.approx(norms, rel=1e-6)
    for name, tensor in snapshot(parameters, optimizer).items():
        assert torch.allclose(rank0[name], tensor, atol=1e-6), name


def test_each_muon_group_holds_one_shape():
    for group in make_optimizer(make_parameters()).groups:
        if isinstance(group, MuonGroup):
            assert len({tuple(p.shape) for _, p in group.parameters}) == 1
