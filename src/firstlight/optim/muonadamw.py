"""The optimizer of every stage: Muon for stacks of matrices, AdamW for the rest, one call per update.

Each rank brings the gradient of its own share of the batch. `MuonAdamW.step` sums them over the ranks, measures one norm
over everything, refuses what is not finite, clips, and updates. Every rank then holds the same weights.

Shapes: K matrices of one shape in a stack, M rows, N columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from firstlight.errors import CheckpointError
from firstlight.optim import muon
from firstlight.optim.adamw import adamw_update_
from firstlight.optim.groups import AdamWGroup, Group, MuonGroup
from firstlight.optim.schedule import Hyper
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


class _Stack:
    """A MuonGroup with its buffers. ``work_KMN`` is filled with gradients and becomes the update, at every step."""

    def __init__(self, group: MuonGroup) -> None:
        self.group = group
        self.parameters: list[torch.Tensor] = [parameter for _, parameter in group.parameters]
        first = self.parameters[0]
        shape = (len(self.parameters), *first.shape)
        self.work_KMN = torch.zeros(shape, dtype=torch.float32, device=first.device)
        self.momentum_KMN = torch.zeros_like(self.work_KMN)
        self.second_moment = None
        if group.variance_beta2 > 0:
            self.second_moment = torch.zeros(muon.second_moment_shape(*shape), dtype=torch.float32, device=first.device)

    def gather_grads(self) -> None:
        for slot, parameter in zip(self.work_KMN, self.parameters, strict=True):
            if parameter.grad is None:
                slot.zero_()
            else:
                slot.copy_(parameter.grad)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for i, (name, _) in enumerate(self.group.parameters):
            tensors[f"{name}/momentum"] = self.momentum_KMN[i]
            if self.second_moment is not None:
                tensors[f"{name}/second_moment"] = self.second_moment[i]
        return tensors


class _AdamState:
    """An AdamWGroup with its moments."""

    def __init__(self, group: AdamWGroup) -> None:
        self.group = group
        self.parameters: list[torch.Tensor] = [parameter for _, parameter in group.parameters]
        self.exp_avgs = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def grads(self) -> list[torch.Tensor]:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def state_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for i, (name, _) in enumerate(self.group.parameters):
            tensors[f"{name}/exp_avg"] = self.exp_avgs[i]
            tensors[f"{name}/exp_avg_sq"] = self.exp_avg_sqs[i]
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
        groups = tuple(groups)
        self.runtime = runtime
        self.num_updates = 0
        self._stacks = [_Stack(g) for g in groups if isinstance(g, MuonGroup) and g.parameters]
        self._adams = [_AdamState(g) for g in groups if isinstance(g, AdamWGroup) and g.parameters]
        if muon_dtype is None:
            # Not float16: the products of the first iterations leave its range.
            muon_dtype = torch.bfloat16 if runtime.compute_dtype is torch.bfloat16 else torch.float32
        self.muon_dtype = muon_dtype
        self.muon_coefficients = muon_coefficients
        self._compiled = compiled

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(a.group for a in self._adams) + tuple(s.group for s in self._stacks)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for state in (*self._adams, *self._stacks):
            for parameter in state.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self, hyper: Hyper, *, grad_scale: float = 1.0) -> UpdateResult:
        """Sum gradients over ranks, multiply by ``grad_scale``, clip, update. A collective call: every rank must make it.

        grad_scale: what turns the summed gradients into those of the loss, for example 1 / global number of targets.
        A parameter without a gradient counts as one with gradient zero. Gradients are used up: their values are
        undefined after the call.

        Clipping scales all gradients by the same factor. Muon's direction does not depend on the scale of a gradient, so
        there it only lowers the weight of this batch in the momentum; AdamW's moments forget it in the same way.
        """
        adam_grads = [state.grads() for state in self._adams]
        for stack in self._stacks:
            stack.gather_grads()
            self.runtime.sum_(stack.work_KMN)
        for grads in adam_grads:
            for grad in grads:
                self.runtime.sum_(grad)

        everything = [stack.work_KMN for stack in self._stacks] + [grad for grads in adam_grads for grad in grads]
        norm = float(torch.stack(torch._foreach_norm(everything)).norm() * grad_scale)
        if not math.isfinite(norm):
            # Sums over ranks spread a NaN or Inf to all of them, so every rank takes this branch.
            return UpdateResult(norm, applied=False)

        factor = grad_scale
        if hyper.grad_clip > 0 and norm > hyper.grad_clip:
            factor *= hyper.grad_clip / norm
        for stack in self._stacks:
            self._update_stack(stack, hyper, factor)
        for state, grads in zip(self._adams, adam_grads, strict=True):
            self._update_adam(state, grads, hyper, factor)
        self.num_updates += 1
        return UpdateResult(norm, applied=True)

    def _update_stack(self, stack: _Stack, hyper: Hyper, factor: float) -> None:
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
        muon.apply_updates_(
            stack.parameters,
            list(stack.work_KMN.unbind(0)),
            lr=group.lr * hyper.lr_multiplier,
            weight_decay=hyper.weight_decay * group.weight_decay_scale,
            cautious=group.cautious,
        )

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

        Muon: momentum, and second_moment where the group has one. AdamW: exp_avg, exp_avg_sq.
        """
        tensors: dict[str, torch.Tensor] = {}
        for state in (*self._adams, *self._stacks):
            tensors |= state.state_tensors()
        return tensors

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy a saved state into place.

        Raises CheckpointError, before anything is copied, if names or shapes are not exactly those of `state_tensors`.
        """
        own = self.state_tensors()
        problems = [f"missing: {name}" for name in own if name not in tensors]
        problems += [f"unknown: {name}" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)}, this model needs {tuple(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise CheckpointError(
                f"the optimizer state does not fit this model: {shown}",
                hint="resume with the depth, width and optimizer settings that the checkpoint was saved with",
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
