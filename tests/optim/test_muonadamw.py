"""The whole optimizer: clipping, refusal of non-finite gradients, state, determinism, two processes."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from ranks import joined, run_ranks
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


SEEDS_BY_STEP = [(0, 1), (2, 3), (4, 5), (6, 7)]
POISONED_STEP = 2


def several_ranks(runtime, saved):
    """Four updates, of which the third is poisoned on the last rank: weights, this rank's state, norms, verdicts."""
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, runtime)
    if saved is not None:
        optimizer.load_state_tensors({name: torch.from_numpy(array) for name, array in saved.items()})
    norms, applied = [], []
    for step, seeds in enumerate(SEEDS_BY_STEP):
        # Two gradients whatever the number of ranks: ranks beyond the second bring zeros.
        grads = make_grads(seeds[runtime.rank]) if runtime.rank < 2 else {n: torch.zeros(s) for n, s in SHAPES.items()}
        if step == POISONED_STEP and runtime.rank == runtime.world_size - 1:
            grads["transformer.h.0.attn.c_k.weight"][2, 2] = math.nan
        result = take_step(parameters, optimizer, grads, Hyper(grad_clip=1.0, weight_decay=0.1), grad_scale=0.5)
        norms.append(result.grad_norm)
        applied.append(result.applied)
    state = {name: tensor.numpy().copy() for name, tensor in optimizer.state_tensors().items()}
    return (
        {n: p.detach().numpy().copy() for n, p in parameters.items()},
        state,
        norms,
        applied,
        optimizer.state_shapes(),
    )


def one_rank(saved):
    """The same updates on one rank, given the sum of the two gradients: the oracle."""
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    if saved is not None:
        optimizer.load_state_tensors({name: torch.from_numpy(array) for name, array in saved.items()})
    norms = []
    for step, seeds in enumerate(SEEDS_BY_STEP):
        both = [make_grads(seed) for seed in seeds]
        if step != POISONED_STEP:
            grads = {name: both[0][name] + both[1][name] for name in SHAPES}
            hyper = Hyper(grad_clip=1.0, weight_decay=0.1)
            norms.append(float(take_step(parameters, optimizer, grads, hyper, grad_scale=0.5).grad_norm))
    return parameters, optimizer, norms


# Five ranks for six matrices: some hold one and some two; the vocabulary of 37 divides by none of them.
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_several_processes_equal_one_with_one_norm_and_one_verdict_and_share_the_state(world_size):
    parameters, optimizer, norms = one_rank(None)
    found = run_ranks(several_ranks, world_size, None)
    whole = joined([state for _, state, *_ in found], found[0][-1])
    for weights, _, found_norms, applied, _ in found:
        assert applied == [True, True, False, True]
        assert np.delete(found_norms, POISONED_STEP) == pytest.approx(norms, rel=1e-6)
        for name in weights:
            np.testing.assert_array_equal(weights[name], found[0][0][name], err_msg=f"{name} differs between ranks")
    for name, parameter in parameters.items():
        np.testing.assert_allclose(found[0][0][name], parameter.detach().numpy(), atol=1e-6, err_msg=name)
    for name, tensor in optimizer.state_tensors().items():
        np.testing.assert_allclose(whole[name], tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_state_of_two_processes_goes_on_in_three_as_in_one():
    two = run_ranks(several_ranks, 2, None)
    saved = joined([state for _, state, *_ in two], two[0][-1])
    three = run_ranks(several_ranks, 3, saved)
    parameters, _, _ = one_rank(saved)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(three[0][0][name], parameter.detach().numpy(), atol=1e-6, err_msg=name)


def test_each_of_two_processes_holds_half_of_the_state():
    states = [state for _, state, *_ in run_ranks(several_ranks, 2, None)]
    sizes = [sum(array.nbytes for array in state.values()) for state in states]
    whole = sum(tensor.nbytes for tensor in make_optimizer(make_parameters()).state_tensors().values())
    assert sum(sizes) == whole
    assert max(sizes) < 0.6 * whole


def test_each_muon_group_holds_one_shape():
    for group in make_optimizer(make_parameters()).groups:
        if isinstance(group, MuonGroup):
            assert len({tuple(p.shape) for _, p in group.parameters}) == 1
