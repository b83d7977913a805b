"""The optimizer of every stage: Muon for stacks of matrices, AdamW for the rest, one call per update.

Each rank brings the gradient of its own share of the batch. `MuonAdamW.step` sums them over the ranks, measures one norm
over everything, refuses what is not finite, clips, and updates. Every rank then holds the same weights.

With several ranks each keeps the state, and does the arithmetic, of its own part only (``buckets.py``): of whole matrices
for Muon, of any range of elements for AdamW. One rank is the case in which that part is everything. Where the weights are
sharded too (`firstlight.model.sharding`), AdamW's range is the rows that the rank holds, and the rows of a matrix come
together at its owner for the update (``shards.py``).

Shapes: K matrices of one shape in a stack, M rows, N columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from firstlight.errors import CheckpointError
from firstlight.model.sharding import is_cut, local_piece
from firstlight.optim import muon
from firstlight.optim.adamw import adamw_update_
from firstlight.optim.buckets import Bucket, pieces_of, place_flat, place_whole
from firstlight.optim.groups import AdamWGroup, Group, MuonGroup
from firstlight.optim.schedule import Hyper
from firstlight.optim.shards import MatrixShards, deal_matrices
from firstlight.runtime.context import Runtime


@dataclass(frozen=True)
class UpdateResult:
    """What became of one call of `MuonAdamW.step`.

    grad_norm: global norm over all ranks' summed gradients times ``grad_scale``, before clipping. Read from
        the device once, before anything is updated: a GPU then works on the update while the next step is prepared.
    applied: False where that norm was not finite; then no weight and no state has changed, on any rank.
    """

    grad_norm: float
    applied: bool


@dataclass(frozen=True)
class _Held:
    """What this rank updates of a parameter: all of it, or the flat elements ``start`` to ``stop``.

    weight: a view of the parameter. grad: where its summed gradient appears (None: in the parameter's own ``grad``).
    sharded: the parameter whose ``grad`` has the gradient of this rank's rows, where weights are sharded.
    """

    name: str
    weight: torch.Tensor
    grad: torch.Tensor | None = None
    start: int | None = None
    stop: int | None = None
    sharded: torch.Tensor | None = None

    def gradient(self) -> torch.Tensor:
        """Summed gradient of what is held; zeros where there is none."""
        if self.grad is not None:
            return self.grad
        if self.sharded is not None:
            grad = self.sharded.grad
            return torch.zeros_like(self.weight) if grad is None else local_piece(grad).tensor.view_as(self.weight)
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        return self.weight.grad

    def key(self, role: str) -> str:
        return f"{self.name}/{role}" + ("" if self.start is None else f"[{self.start}:{self.stop}]")


class _Stack:
    """Matrices of a MuonGroup with their buffers. ``work_KMN`` is filled with gradients and becomes the update, at each step."""

    def __init__(self, group: MuonGroup, held: Sequence[_Held], *, work_KMN: torch.Tensor | None = None) -> None:
        """work_KMN: where summed gradients appear; None: this rank's own are gathered into a new buffer."""
        self.group = group
        self.held = held
        self.parameters: list[torch.Tensor] = [one.weight for one in held]
        first = self.parameters[0]
        shape = (len(self.parameters), *first.shape)
        self._gathers = work_KMN is None
        self.work_KMN = torch.zeros(shape, dtype=torch.float32, device=first.device) if work_KMN is None else work_KMN
        self.momentum_KMN = torch.zeros(shape, dtype=torch.float32, device=first.device)
        self.second_moment = None
        if group.variance_beta2 > 0:
            self.second_moment = torch.zeros(muon.second_moment_shape(*shape), dtype=torch.float32, device=first.device)

    def gather_grads(self) -> None:
        if not self._gathers:
            return
        for slot, parameter in zip(self.work_KMN, self.parameters, strict=True):
            if parameter.grad is None:
                slot.zero_()
            else:
                slot.copy_(parameter.grad)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for i, one in enumerate(self.held):
            tensors[one.key("momentum")] = self.momentum_KMN[i]
            if self.second_moment is not None:
                tensors[one.key("second_moment")] = self.second_moment[i]
        return tensors


class _AdamState:
    """Parameters of an AdamWGroup, or pieces of them, with their moments."""

    def __init__(self, group: AdamWGroup, held: Sequence[_Held]) -> None:
        self.group = group
        self.held = held
        self.parameters: list[torch.Tensor] = [one.weight for one in held]
        self.exp_avgs = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def grads(self) -> list[torch.Tensor]:
        return [one.gradient() for one in self.held]

    def state_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for i, one in enumerate(self.held):
            tensors[one.key("exp_avg")] = self.exp_avgs[i]
            tensors[one.key("exp_avg_sq")] = self.exp_avg_sqs[i]
        return tensors


class MuonAdamW:
    """Both rules behind one `step`. The same gradients give the same bits; no random number is drawn.

    num_updates: updates that were applied so far (AdamW's bias correction counts them). It is not among the state
    tensors: save and restore it beside them.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        runtime: Runtime,
        *,
        muon_dtype: torch.dtype | None = None,
        muon_coefficients: muon.Coefficients = muon.POLAR_EXPRESS_4,
        compiled: bool = False,
    ) -> None:
        """muon_dtype: of the orthogonalization; None is bfloat16 where the runtime computes in it, else float32.

        compiled: run Muon's arithmetic through torch.compile (worth it on GPUs; on CPUs matrix products dominate).
        """
        self.groups: tuple[Group, ...] = tuple(g for g in groups if g.parameters)
        self.runtime = runtime
        self.num_updates = 0
        muons = [g for g in self.groups if isinstance(g, MuonGroup)]
        adams = [g for g in self.groups if isinstance(g, AdamWGroup)]
        self._muon_bucket: Bucket | MatrixShards | None = None
        self._adam_bucket: Bucket | None = None
        self._row_shards: MatrixShards | None = None
        if runtime.world_size == 1:
            self._stacks = [_Stack(g, [_Held(*named) for named in g.parameters]) for g in muons]
            self._adams = [_AdamState(g, [_Held(*named) for named in g.parameters]) for g in adams]
        elif any(is_cut(parameter) for group in self.groups for _, parameter in group.parameters):
            self._row_shards, self._stacks = _sharded_stacks(muons, runtime)
            self._muon_bucket = self._row_shards
            self._adams = _sharded_adams(adams, runtime)
        else:
            self._muon_bucket, self._stacks = _shared_stacks(muons, runtime)
            self._adam_bucket, self._adams = _shared_adams(adams, runtime)
        if muon_dtype is None:
            # Not float16: the products of the first iterations leave its range.
            muon_dtype = torch.bfloat16 if runtime.compute_dtype is torch.bfloat16 else torch.float32
        self.muon_dtype = muon_dtype
        self.muon_coefficients = muon_coefficients
        self._compiled = compiled

    @property
    def _buckets(self) -> list[Bucket | MatrixShards]:
        return [bucket for bucket in (self._adam_bucket, self._muon_bucket) if bucket is not None]

    def zero_grad(self) -> None:
        """Drop all gradients; where the ranks share buffers, set them to zero there."""
        for group in self.groups:
            for _, parameter in group.parameters:
                parameter.grad = None
        for bucket in self._buckets:
            if isinstance(bucket, Bucket):
                bucket.zero_grads()

    @torch.no_grad()
    def step(self, hyper: Hyper, *, grad_scale: float = 1.0) -> UpdateResult:
        """Sum gradients over ranks, multiply by ``grad_scale``, clip, update. A collective call: every rank must make it.

        grad_scale: what turns the summed gradients into those of the loss, for example 1 / global number of targets.
        A parameter without a gradient counts as one with gradient zero. Gradients are used up: their values are
        undefined after the call.

        Clipping scales all gradients by the same factor. Muon's direction does not depend on the scale of a gradient, so
        there it only lowers the weight of this batch in the momentum; AdamW's moments forget it in the same way.
        """
        for bucket in self._buckets:
            bucket.start_reduce()
        for bucket in self._buckets:
            bucket.finish_reduce()
        adam_grads = [state.grads() for state in self._adams]
        for stack in self._stacks:
            stack.gather_grads()
        everything = [stack.work_KMN for stack in self._stacks] + [grad for grads in adam_grads for grad in grads]
        norm = self._global_norm(everything) * grad_scale
        if not math.isfinite(norm):
            # The sum over ranks spreads a NaN or Inf to all of them, so every rank takes this branch.
            return UpdateResult(norm, applied=False)

        factor = grad_scale
        if hyper.grad_clip > 0 and norm > hyper.grad_clip:
            factor *= hyper.grad_clip / norm
        for state, grads in zip(self._adams, adam_grads, strict=True):
            self._update_adam(state, grads, hyper, factor)
        # AdamW's weights, most of the bytes, travel while Muon, most of the arithmetic, computes.
        if self._adam_bucket is not None:
            self._adam_bucket.start_share()
        for stack in self._stacks:
            self._make_updates(stack, hyper, factor)
            if self._row_shards is None:
                self._apply(stack.group, stack.parameters, list(stack.work_KMN.unbind(0)), hyper)
        if self._muon_bucket is not None:
            self._muon_bucket.start_share()
        for bucket in self._buckets:
            bucket.finish_share()
        if self._row_shards is not None:
            self._apply_rows(self._row_shards, hyper)
        self.num_updates += 1
        return UpdateResult(norm, applied=True)

    def _global_norm(self, grads: list[torch.Tensor]) -> float:
        """Norm over the gradients that the ranks hold, each a part of the whole; the same on every rank."""
        norms = torch._foreach_norm(grads) if grads else ()
        if self.runtime.world_size == 1:
            return float(torch.stack(list(norms)).norm())
        # A rank may hold nothing of a small model. Squares of float32 norms overflow float32, not float64.
        own = torch.stack(list(norms)).double().square().sum() if norms else torch.zeros((), dtype=torch.float64)
        return math.sqrt(float(self.runtime.sum(own.to(self.runtime.device))))

    def _make_updates(self, stack: _Stack, hyper: Hyper, factor: float) -> None:
        """Gradients in the stack's ``work_KMN`` become updates."""
        group = stack.group
        if factor != 1.0:
            stack.work_KMN.mul_(factor)
        if self._compiled:
            direction_ = muon.compiled_muon_direction_()
            momentum = torch.tensor(hyper.momentum, device=stack.work_KMN.device)
        else:
            direction_, momentum = muon.muon_direction_, hyper.momentum
        direction_(
            stack.work_KMN,
            stack.momentum_KMN,
            stack.second_moment,
            momentum=momentum,
            beta2=group.variance_beta2,
            dtype=self.muon_dtype,
            coefficients=self.muon_coefficients,
            safety=muon.needs_safety(self.muon_coefficients),
        )

    def _apply(
        self, group: MuonGroup, parameters: list[torch.Tensor], updates: list[torch.Tensor], hyper: Hyper
    ) -> None:
        muon.apply_updates_(
            parameters,
            updates,
            lr=group.lr * hyper.lr_multiplier,
            weight_decay=hyper.weight_decay * group.weight_decay_scale,
            cautious=group.cautious,
        )

    def _apply_rows(self, shards: MatrixShards, hyper: Hyper) -> None:
        """Updates are applied element by element, so rows need nothing from other rows."""
        first = 0
        for group in self.groups:
            if isinstance(group, MuonGroup):
                own = slice(first, first + len(group.parameters))
                self._apply(group, shards.weights[own], shards.updates[own], hyper)
                first = own.stop
        shards.updates = []

    def _update_adam(self, state: _AdamState, grads: list[torch.Tensor], hyper: Hyper, factor: float) -> None:
        group = state.group
        for step in state.steps:
            step.fill_(self.num_updates)
        adamw_update_(
            state.parameters,
            grads,
            state.exp_avgs,
            state.exp_avg_sqs,
            state.steps,
            lr=group.lr * hyper.lr_multiplier,
            betas=hyper.betas or group.betas,
            eps=group.eps,
            weight_decay=hyper.weight_decay * group.weight_decay_scale,
            grad_divisor=None if factor == 1.0 else torch.tensor(1 / factor, device=grads[0].device),
        )

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """State by parameter name and role, ``"transformer.h.0.attn.c_q.weight/momentum"``: the live tensors, not copies.

        Muon: momentum, and second_moment where the group has one. AdamW: exp_avg, exp_avg_sq. With several ranks it is
        what this rank holds; a part of a parameter is flat, and ``[start:stop]`` of its elements ends the name.
        """
        tensors: dict[str, torch.Tensor] = {}
        for state in (*self._adams, *self._stacks):
            tensors |= state.state_tensors()
        return tensors

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each whole state tensor of all ranks together, by parameter name and role."""
        shapes: dict[str, tuple[int, ...]] = {}
        for group in self.groups:
            for name, parameter in group.parameters:
                whole = tuple(parameter.shape)
                if isinstance(group, AdamWGroup):
                    shapes |= {f"{name}/exp_avg": whole, f"{name}/exp_avg_sq": whole}
                    continue
                shapes[f"{name}/momentum"] = whole
                if group.variance_beta2 > 0:
                    shapes[f"{name}/second_moment"] = tuple(muon.second_moment_shape(1, *whole)[1:])
        return shapes

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy a saved state into place, of which this rank takes its own part.

        tensors: whole tensors by the names of `state_shapes`, whatever number of ranks saved them; a mapping with
        ``shape(name)`` and ``piece(name, start, stop)``, as a checkpoint has them, is not read where it is not needed.
        Raises CheckpointError, before anything is copied, if names or shapes are not exactly those of `state_shapes`.
        """
        own = self.state_shapes()
        shape_of = getattr(tensors, "shape", lambda name: tuple(tensors[name].shape))
        problems = [f"missing: {name}" for name in own if name not in tensors]
        problems += [f"unknown: {name}" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(shape_of(name))}, this model needs {own[name]}"
            for name in own
            if name in tensors and tuple(shape_of(name)) != own[name]
        ]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise CheckpointError(
                f"the optimizer state does not fit this model: {shown}",
                hint="resume with the depth, width and optimizer settings that the checkpoint was saved with",
            )
        piece_of = getattr(tensors, "piece", lambda name, start, stop: tensors[name].reshape(-1)[start:stop])
        for state in (*self._adams, *self._stacks):
            for key, tensor in state.state_tensors().items():
                name, _, part = key.partition("[")
                if part:
                    start, stop = map(int, part.removesuffix("]").split(":"))
                    tensor.copy_(piece_of(name, start, stop))
                else:
                    tensor.copy_(tensors[name])


def _shared_stacks(groups: Sequence[MuonGroup], runtime: Runtime) -> tuple[Bucket | None, list[_Stack]]:
    """The bucket of all matrices, and this rank's stacks of whole ones: a group of which it owns none has no stack here."""
    named = [one for group in groups for one in group.parameters]
    if not named:
        return None, []
    sizes = [parameter.numel() for _, parameter in named]
    bucket = Bucket([p for _, p in named], place_whole(sizes, runtime.world_size), runtime=runtime)
    owned = {piece.index: piece for piece in pieces_of(sizes, bucket.placement, runtime.rank)}
    stacks = []
    first = 0
    for group in groups:
        indices = [i for i in range(first, first + len(group.parameters)) if i in owned]
        first += len(group.parameters)
        if not indices:
            continue
        shape = named[indices[0]][1].shape
        distance = owned[indices[1]].offset - owned[indices[0]].offset if len(indices) > 1 else shape.numel()
        work_KMN = bucket.grads.as_strided(
            (len(indices), *shape), (distance, shape[1], 1), storage_offset=owned[indices[0]].offset
        )
        stacks.append(_Stack(group, [_Held(*named[i]) for i in indices], work_KMN=work_KMN))
    return bucket, stacks


def _shared_adams(groups: Sequence[AdamWGroup], runtime: Runtime) -> tuple[Bucket | None, list[_AdamState]]:
    """The bucket of everything else, and this rank's part of each group."""
    named = [one for group in groups for one in group.parameters]
    if not named:
        return None, []
    sizes = [parameter.numel() for _, parameter in named]
    bucket = Bucket([p for _, p in named], place_flat(sizes, runtime.world_size), runtime=runtime)
    own_weights = bucket.segment_of(runtime.rank)
    owned = {piece.index: piece for piece in pieces_of(sizes, bucket.placement, runtime.rank)}
    states = []
    first = 0
    for group in groups:
        held = []
        for index in range(first, first + len(group.parameters)):
            if index not in owned:
                continue
            piece, (name, parameter) = owned[index], named[index]
            place = slice(piece.offset, piece.offset + piece.stop - piece.start)
            if piece.stop - piece.start == parameter.numel():
                held.append(_Held(name, parameter, bucket.grads[place].view(parameter.shape)))
            else:
                held.append(_Held(name, own_weights[place], bucket.grads[place], piece.start, piece.stop))
        first += len(group.parameters)
        if held:
            states.append(_AdamState(group, held))
    return bucket, states


def _sharded_stacks(groups: Sequence[MuonGroup], runtime: Runtime) -> tuple[MatrixShards | None, list[_Stack]]:
    """The exchange of all matrices, and this rank's stacks of those that it owns."""
    parameters = [parameter for group in groups for _, parameter in group.parameters]
    if not parameters:
        return None, []
    owners = deal_matrices([tuple(parameter.shape) for parameter in parameters], runtime.world_size)
    stacks, works = [], {}
    first = 0
    for group in groups:
        owned = [i for i in range(len(group.parameters)) if owners[first + i] == runtime.rank]
        if owned:
            shape = (len(owned), *group.parameters[0][1].shape)
            work_KMN = torch.zeros(shape, dtype=torch.float32, device=runtime.device)
            stacks.append(_Stack(group, [_Held(*group.parameters[i]) for i in owned], work_KMN=work_KMN))
            works |= {first + i: slot for i, slot in zip(owned, work_KMN, strict=True)}
        first += len(group.parameters)
    return MatrixShards(parameters, owners, works, runtime=runtime), stacks


def _sharded_adams(groups: Sequence[AdamWGroup], runtime: Runtime) -> list[_AdamState]:
    """This rank's rows of each group."""
    states = []
    for group in groups:
        held = []
        for name, parameter in group.parameters:
            local, start, stop, shape = local_piece(parameter)
            if stop - start == parameter.numel():
                held.append(_Held(name, local.view(shape), sharded=parameter))
            elif stop > start:
                held.append(_Held(name, local, None, start, stop, sharded=parameter))
        if held:
            states.append(_AdamState(group, held))
    return states
