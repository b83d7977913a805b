"""Weights cut into rows over the processes: each keeps its rows of every parameter, and a block is whole while it works.

    forward:   gather a block's rows, compute, let them go                 (backward gathers them once more)
    backward:  sum the block's gradients over all processes, each keeps those of its own rows
    update:    each process updates its rows (`firstlight.optim.shards`)

That is FSDP2 (torch's ``fully_shard``), put around the model from outside: the model's code does not know of it, and its
casts to the compute dtype stay where they are. Weights, gradients and optimizer state take 1 / W of the memory, for three
times the bytes between processes that replicated weights need. Gradients are summed at every micro-batch: to wait for the
last one would keep whole gradients, and this is for models that have no room for them.

A forward pass is a collective call: all processes must make the same number of them, in training and in scoring.

Embeddings, head and what else is outside the blocks are gathered by `GPT.hidden` and stay whole until the backward pass
ends: the loss layer reads the head after the trunk. So read ``model.lm_head.weight`` after ``hidden``, not before.

Shapes: a parameter of M rows (its first dimension) on W processes is cut as torch.chunk does it, into rows of ceil(M / W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from firstlight.errors import CheckpointError
from firstlight.model import init
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT
from firstlight.runtime.context import Runtime


class LocalPiece(NamedTuple):
    """What this process holds of a parameter: flat elements ``start`` to ``stop`` of the whole, whose shape is ``shape``.

    tensor: (stop - start,), a view of the live weights.
    """

    tensor: torch.Tensor
    start: int
    stop: int
    shape: tuple[int, ...]

    def key(self, name: str) -> str:
        """``NAME[start:stop]``, under which checkpoints keep it; the name itself where the piece is everything.

        >>> LocalPiece(torch.zeros(2), 2, 4, (4,)).key("scales"), LocalPiece(torch.zeros(4), 0, 4, (4,)).key("scales")
        ('scales[2:4]', 'scales')
        """
        return name if self.stop - self.start == math.prod(self.shape) else f"{name}[{self.start}:{self.stop}]"


def local_range(shape: tuple[int, ...], *, rank: int, world_size: int) -> tuple[int, int]:
    """First and last + 1 of the flat elements of a parameter that a rank holds; the same number twice where it holds none.

    >>> [local_range((5, 2), rank=rank, world_size=4) for rank in range(4)]
    [(0, 4), (4, 8), (8, 10), (10, 10)]
    """
    rows, row = shape[0], math.prod(shape[1:])
    step = -(-rows // world_size)
    return min(rank * step, rows) * row, min((rank + 1) * step, rows) * row


def is_sharded(model: object) -> bool:
    """Whether the weights of this model are cut into rows."""
    return hasattr(model, "reshard")


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether this parameter (or its gradient) is cut into rows: a DTensor."""
    return hasattr(tensor, "to_local")


def local_piece(tensor: Any) -> LocalPiece:
    """What this process holds of a tensor: its rows of one that is cut (possibly none), all of any other. It must be
    contiguous."""
    shape = tuple(tensor.shape)
    if not is_cut(tensor):
        return LocalPiece(tensor.detach().view(-1), 0, tensor.numel(), shape)
    local, mesh = tensor.detach().to_local(), tensor.device_mesh
    start, stop = local_range(shape, rank=mesh.get_local_rank(), world_size=mesh.size())
    assert local.numel() == stop - start, f"{local.numel()} elements are here, {stop - start} should be"
    return LocalPiece(local.view(-1), start, stop, shape)


def shard_weights(model: GPT, runtime: Runtime) -> GPT:
    """Cut the weights of a model, in place; every rank brings the same ones. On one process the model stays as it is.

    Make the optimizer afterwards: the parameters are other tensors then. A collective call.
    """
    if runtime.world_size > 1:
        _shard(model, runtime)
    return model


def build_sharded_gpt(
    config: GPTConfig, runtime: Runtime, *, compute_dtype: torch.dtype = torch.float32, seed: int
) -> GPT:
    """`build_gpt` and `shard_weights` in one, with the same weights; no more than one block is ever whole in memory
    (and then what is outside the blocks). A collective call.
    """
    if runtime.world_size == 1:
        return init.build_gpt(config, device=runtime.device, compute_dtype=compute_dtype, seed=seed)
    with torch.device("meta"):
        model = GPT(config, compute_dtype=compute_dtype)

    def fill(prefix: str, modules: list[nn.Module]) -> None:
        for module in modules:
            module.to_empty(device=runtime.device, recurse=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(prefix) and not is_cut(parameter):
                    parameter.copy_(init.draw_weight(name, parameter.shape, seed=seed))

    _shard(model, runtime, before=fill)
    model.reset_rope()
    return model


def compile_blocks(model: GPT) -> None:
    """Run each block through torch.compile (at its first call). The gathering around the blocks stays as it is."""
    for block in model.transformer.h:
        # Not `block.compile()`, which would take the gathering into the graph.
        block.forward = torch.compile(block.forward, dynamic=False)


def drop_pass(model: Any) -> None:
    """Make a sharded model fit for the next pass after an error cut one short; its gradients are lost.

    Every rank must be at the same point: an error on one rank alone leaves the others waiting in a collective.
    """
    if is_sharded(model):
        model.reset_iter_state()


def local_pieces(model: GPT) -> dict[str, LocalPiece]:
    """What this process holds of every parameter, by name; without those of which it holds nothing.

    A model that is not sharded is held whole.
    """
    pieces = {name: local_piece(parameter) for name, parameter in _held_parameters(model).items()}
    return {name: piece for name, piece in pieces.items() if piece.stop > piece.start}


def weight_tensors(model: GPT) -> dict[str, torch.Tensor]:
    """`local_pieces` under the keys that checkpoints have: ``NAME`` (a whole tensor) or ``NAME[start:stop]`` (a flat one)."""
    tensors = {}
    for name, piece in local_pieces(model).items():
        key = piece.key(name)
        tensors[key] = piece.tensor.view(piece.shape) if key == name else piece.tensor
    return tensors


def saved_weights(model: GPT) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, ...]]]:
    """`weight_tensors` and `weight_shapes`: what a checkpoint needs of this process."""
    return weight_tensors(model), weight_shapes(model)


def weight_shapes(model: GPT) -> dict[str, tuple[int, ...]]:
    """Shape of every whole parameter, by name."""
    return {name: tuple(parameter.shape) for name, parameter in _held_parameters(model).items()}


def load_pieces(model: GPT, reader: Mapping[str, torch.Tensor]) -> None:
    """Copy saved weights into place, of which each rank takes its own part.

    reader: whole tensors by name, whatever number of processes saved them; of a mapping with ``shape(name)`` and
    ``piece(name, start, stop)``, as a checkpoint has them, only this rank's part is read.
    Raises CheckpointError, before anything is copied, that names what is missing, unknown or of another shape.
    """
    parameters = _held_parameters(model)
    shape_of = getattr(reader, "shape", lambda name: tuple(reader[name].shape))
    problems = [f"{name} is missing" for name in parameters if name not in reader]
    problems += [f"{name} is not part of the model" for name in reader if name not in parameters]
    problems += [
        f"{name} is {list(shape_of(name))} instead of {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in reader and tuple(shape_of(name)) != tuple(parameter.shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the saved weights are from another architecture: {'; '.join(problems[:3])}{more}",
            hint="resume with the settings that the run was started with",
        )
    piece_of = getattr(reader, "piece", lambda name, start, stop: reader[name].reshape(-1)[start:stop])
    with torch.no_grad():
        for name, piece in local_pieces(model).items():
            piece.tensor.copy_(piece_of(name, piece.start, piece.stop))


def _shard(model: GPT, runtime: Runtime, *, before: Callable[[str, list[nn.Module]], None] | None = None) -> None:
    """before: called with the prefix of the names and the modules that are cut next."""
    # Only here: importing these takes two seconds.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(runtime.device.type, (runtime.world_size,), mesh_dim_names=("ranks",))
    in_blocks = set(model.transformer.h.modules())
    for i, block in enumerate(model.transformer.h):
        if before is not None:
            before(f"transformer.h.{i}.", list(block.modules()))
        _sum_gradients(fully_shard(block, mesh=mesh))
    if before is not None:
        before("", [module for module in model.modules() if module not in in_blocks])
    _sum_gradients(fully_shard(model, mesh=mesh, reshard_after_forward=False))
    register_fsdp_forward_method(model, "hidden")


def _sum_gradients(module: Any) -> None:
    """Gradients are sums over the ranks, as everywhere in firstlight, and not means."""
    module.set_gradient_divide_factor(1.0)
    # Else the factor is a reduction of NCCL's own, which gloo has not got.
    module.set_force_sum_reduction_for_comms(True)


def _held_parameters(model: GPT) -> dict[str, nn.Parameter]:
    """Parameters by name, with nothing gathered: what is gathered are copies, which are not saved and not loaded into."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # pyrefly: ignore
    return dict(model.named_parameters())
