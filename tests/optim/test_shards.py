"""Rows of matrices go to their owners and back; the update is that of one process with whole weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ranks import joined, run_ranks
from torch import nn

from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.optim.shards import MatrixShards, deal_matrices
from firstlight.runtime.context import Runtime

# Five ranks hold 2, 2, 2, 2 and 0 rows of a square matrix, 1 number each of the gate, and all of `one` on the first.
SHAPES = {
    "transformer.wte.weight": (37, 8),
    "transformer.h.0.attn.c_q.weight": (8, 8),
    "transformer.h.0.attn.c_k.weight": (8, 8),
    "transformer.h.0.attn.c_v.weight": (8, 8),
    "transformer.h.0.mlp.c_fc.weight": (24, 8),
    "transformer.h.0.mlp.c_proj.weight": (8, 24),
    "gate": (5,),
    "one": (1,),
    "lm_head.weight": (37, 8),
}
MATRICES = [name for name in SHAPES if name.startswith("transformer.h.")]
POISONED_STEP = 2
HYPER = Hyper(grad_clip=1.0, weight_decay=0.1)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def make_optimizer(parameters, runtime):
    groups = make_groups(parameters.items(), cautious=True, variance_beta2=0.9, weight_decay_scale_adamw=0.5)
    return MuonAdamW(groups, runtime)


def cut(tensor, runtime):
    """A DTensor of a tensor that all ranks have, made by torch itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, init_device_mesh("cpu", (runtime.world_size,)), [Shard(0)])


def exchange(runtime):
    """Gradients at their owners, and what comes back of updates of which each element tells matrix and place."""
    parameters = [nn.Parameter(cut(torch.zeros(SHAPES[name]), runtime)) for name in MATRICES]
    grads = drawn(1)
    for name, parameter in zip(MATRICES[1:], parameters[1:], strict=True):
        parameter.grad = cut(grads[name], runtime)
    owners = deal_matrices([SHAPES[name] for name in MATRICES], runtime.world_size)
    mine = [i for i, owner in enumerate(owners) if owner == runtime.rank]
    works = {i: torch.full(SHAPES[MATRICES[i]], math.nan) for i in mine}
    shards = MatrixShards(parameters, owners, works, runtime=runtime)
    shards.start_reduce()
    shards.finish_reduce()
    received = {i: work.numpy().copy() for i, work in works.items()}
    for i, work in works.items():
        work.copy_(1000.0 * i + torch.arange(work.numel()).view(work.shape))
    shards.start_share()
    shards.finish_share()
    dropped = all(parameter.grad is None for parameter in parameters)
    return owners, received, [update.numpy().copy() for update in shards.updates], dropped


def test_gradients_become_whole_at_their_owner_and_updates_come_back_in_rows():
    world_size = 5
    found = run_ranks(exchange, world_size)
    grads = drawn(1)
    seen = []
    for rank, (owners, received, updates, dropped) in enumerate(found):
        assert dropped
        assert sorted(received) == [i for i, owner in enumerate(owners) if owner == rank]
        for i, whole in received.items():
            seen.append(i)
            # The first matrix got no gradient on any rank.
            expected = np.zeros(SHAPES[MATRICES[i]]) if i == 0 else grads[MATRICES[i]].numpy()
            np.testing.assert_array_equal(whole, expected, err_msg=MATRICES[i])
        for i, name in enumerate(MATRICES):
            whole = 1000.0 * i + torch.arange(math.prod(SHAPES[name])).view(SHAPES[name])
            rows = whole.chunk(world_size)
            expected = rows[rank].reshape(-1).numpy() if rank < len(rows) else np.zeros(0)
            np.testing.assert_array_equal(updates[i], expected, err_msg=name)
    assert sorted(seen) == list(range(len(MATRICES)))


def test_owners_are_dealt_level_and_every_matrix_has_one():
    # 4 layers of (4 square, 1 wide, 1 tall): 4 * (4 + 4 + 4) = 48 squares of work on 4 owners.
    shapes = [(64, 64)] * 16 + [(256, 64)] * 4 + [(64, 256)] * 4
    owners = deal_matrices(shapes, 4)
    loads = [sum(m * n for (m, n), owner in zip(shapes, owners, strict=True) if owner == rank) for rank in range(4)]
    assert loads == [12 * 64 * 64] * 4


def updates_in_shards(runtime, saved):
    """Four updates, of which the third is poisoned at the last row of a matrix or of the head."""
    parameters = {name: nn.Parameter(cut(weight, runtime)) for name, weight in drawn(0).items()}
    optimizer = make_optimizer(parameters, runtime)
    if saved is not None:
        optimizer.load_state_tensors({name: torch.from_numpy(array) for name, array in saved.items()})

    def bits():
        own = {name: p.detach().to_local().clone() for name, p in parameters.items()}
        return own | {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}

    norms, verdicts = [], []
    for step in range(4):
        for poisoned in ("transformer.h.0.attn.c_k.weight", "lm_head.weight", "one", None):
            if poisoned is not None and step != POISONED_STEP:
                continue
            before = bits()
            for name, grad in drawn(100 + step).items():
                if name == poisoned:
                    grad.view(-1)[-1] = math.nan
                parameters[name].grad = cut(grad, runtime)
            result = optimizer.step(HYPER, grad_scale=0.5)
            after = bits()
            if poisoned is not None:
                same = all(torch.equal(before[name], after[name]) for name in before)
                verdicts.append((result.applied, math.isfinite(result.grad_norm), same))
            else:
                norms.append(result.grad_norm)
            optimizer.zero_grad()
    weights = {name: p.detach().full_tensor().numpy().copy() for name, p in parameters.items()}
    state = {name: tensor.numpy().copy() for name, tensor in optimizer.state_tensors().items()}
    return weights, state, norms, verdicts, optimizer.state_shapes(), optimizer.num_updates


def updates_of_one(saved):
    """The same on one process, without the poisoned ones: the oracle."""
    runtime = Runtime(device=torch.device("cpu"))
    parameters = {name: nn.Parameter(weight) for name, weight in drawn(0).items()}
    optimizer = make_optimizer(parameters, runtime)
    if saved is not None:
        optimizer.load_state_tensors(saved)
    norms = []
    for step in range(4):
        for name, grad in drawn(100 + step).items():
            parameters[name].grad = grad
        norms.append(optimizer.step(HYPER, grad_scale=0.5).grad_norm)
    return parameters, optimizer, norms


def assert_equal_to_one(found, saved):
    parameters, optimizer, norms = updates_of_one(saved)
    for weights, _, found_norms, verdicts, shapes, num_updates in found:
        assert verdicts == [(False, False, True)] * 3
        assert found_norms == pytest.approx(norms, rel=1e-6)
        assert num_updates == 4
        assert shapes == optimizer.state_shapes()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(weights[name], parameter.detach().numpy(), atol=1e-6, err_msg=name)
    whole = joined([state for _, state, *_ in found], optimizer.state_shapes())
    for name, tensor in optimizer.state_tensors().items():
        np.testing.assert_allclose(whole[name], tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    return whole


def test_sharded_weights_are_updated_as_whole_ones_and_a_nan_anywhere_changes_no_bit():
    assert_equal_to_one(run_ranks(updates_in_shards, 5, None), None)


def test_muons_state_is_whole_at_one_rank_and_adamws_lies_with_its_rows_and_goes_on_from_that_of_one_process():
    _, optimizer, _ = updates_of_one(None)
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    found = run_ranks(updates_in_shards, 2, {name: tensor.numpy() for name, tensor in saved.items()})
    assert_equal_to_one(found, saved)
    keys = [set(state) for _, state, *_ in found]
    assert {"lm_head.weight/exp_avg[0:152]", "gate/exp_avg[0:3]", "one/exp_avg"} <= keys[0]
    assert {"lm_head.weight/exp_avg[152:296]", "gate/exp_avg[3:5]"} <= keys[1]
    assert not any(key.startswith("one/") for key in keys[1])
    for name in MATRICES:
        assert sum(f"{name}/momentum" in held for held in keys) == 1
        assert not any(key.startswith(f"{name}/") and "[" in key for held in keys for key in held)
