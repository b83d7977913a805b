"""Products in 8-bit floating point, for GPUs that have them (compute capability 8.9 and above: Ada, Hopper, Blackwell).

A tensor is divided by one scale so that its largest number is the largest that the format has, rounded to 8 bits, and the
product is multiplied by both scales ("tensorwise, dynamic"). Values and weights are rounded to e4m3 (3 bits of fraction),
gradients to e5m2 (2 bits, more range): Micikevicius et al. 2022, arXiv 2209.05433. Sums are in float32.

    forward       y_NO  = x_NI  W_OI^T     e4m3 x e4m3
    grad-input    dx_NI = dy_NO W_OI       e5m2 x e4m3
    grad-weight   dW_OI = dy_NO^T x_NI     e5m2 x e4m3, float32 out

Weights stay float32 and keep their names: checkpoints do not know of any of this.

Shapes: N rows of a product (tokens), I inputs, O outputs; M, K, P sizes of any one product (M, K) x (K, P).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import ScalingType, scaled_mm

from firstlight.errors import ConfigError
from firstlight.model.precision import Linear

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
SMALLEST_AMAX = 1e-12
"""Stands for the largest number of an all-zero tensor."""

MULTIPLE = 16
"""cuBLAS takes 8-bit matrices whose rows are a whole number of 16 bytes."""
SMALLEST_SIDE = 128
"""Matrices with a side below this stay as they are: reading the input for its scale costs more than the product saves."""
SMALLEST_CAPABILITY = (8, 9)


def check_fp8(device: torch.device, compute_dtype: torch.dtype) -> None:
    """Raises ConfigError, naming the reason, where products in fp8 cannot be had on a device."""
    hint = (
        "leave --fp8 away, or train on an NVIDIA GPU with compute capability 8.9 or above (L4, RTX 40, H100 and later)"
    )
    if device.type != "cuda":
        raise ConfigError(f"--fp8: a device of type {device.type} has no 8-bit floating-point products", hint=hint)
    if torch.version.hip is not None:
        raise ConfigError("--fp8: AMD GPUs have other 8-bit formats, which firstlight does not use", hint=hint)
    capability = torch.cuda.get_device_capability(device)
    if capability < SMALLEST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"--fp8: {name} has no 8-bit floating-point products (compute capability {capability[0]}.{capability[1]})",
            hint=hint,
        )
    if compute_dtype != torch.bfloat16:
        raise ConfigError(
            "--fp8: what is not in fp8 must be in bf16, which has the same range as the weights",
            hint="use --dtype bf16, or leave --dtype auto",
        )


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` rounded to 8 bits, and the 0-d float32 scale that it is to be multiplied by.

    A NaN or infinity makes the scale not finite, and so every number of the product: it cannot be lost in the rounding.
    """
    x = x.contiguous()  # a gradient may be an expanded one
    amax = x.abs().amax().float().clamp_min(SMALLEST_AMAX)
    scale = amax / LARGEST[dtype]
    # Rounding may push the largest number just over the format's end, where e4m3 has NaN.
    x8 = (x.float() / scale).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
    return x8, scale


def product(
    a8_MK: torch.Tensor,
    b8_PK: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    *,
    dtype: torch.dtype,
    fast: bool,
) -> torch.Tensor:
    """``a b^T`` of two row-major 8-bit matrices, (M,P) in ``dtype``; K and P must be multiples of 16.

    Both operands have the summed axis last, which is the layout that tensor cores read (the second is passed as a
    column-major (K,P) matrix). fast: let Hopper keep partial sums in fewer bits, good enough for values, not for gradients.
    """
    K, P = a8_MK.shape[1], b8_PK.shape[0]
    assert (K % MULTIPLE, P % MULTIPLE) == (0, 0), f"({K},{P}) are not multiples of {MULTIPLE}"
    wise = ScalingType.TensorWise
    return scaled_mm(a8_MK, b8_PK.t(), a_scale, wise, b_scale, wise, output_dtype=dtype, use_fast_accum=fast)


def transposed(x8_MK: torch.Tensor, *, pad: bool = False) -> torch.Tensor:
    """A row-major copy (K,M) of the transpose; with ``pad``, zero columns up to a multiple of 16 (they add nothing to a sum).

    Copied as bytes, which every device can do; the byte 0 is the number 0 in both formats.
    """
    bytes_KM = x8_MK.view(torch.uint8).t()
    missing = -x8_MK.shape[0] % MULTIPLE if pad else 0
    if missing:
        bytes_KM = nn.functional.pad(bytes_KM, (0, missing))
    return bytes_KM.contiguous().view(x8_MK.dtype)


class _Fp8Product(torch.autograd.Function):
    """``x W^T`` and its two gradients. What is kept for the backward pass is 8 bits wide."""

    @staticmethod
    def forward(ctx, x_NI: torch.Tensor, weight_OI: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x8_NI, x_scale = quantize(x_NI, E4M3)
        weight8_OI, weight_scale = quantize(weight_OI, E4M3)
        ctx.save_for_backward(x8_NI, x_scale, weight8_OI, weight_scale)
        ctx.dtypes = x_NI.dtype, weight_OI.dtype
        return product(x8_NI, weight8_OI, x_scale, weight_scale, dtype=dtype, fast=True)

    @staticmethod
    def backward(ctx, *grad_outputs):
        (dy_NO,) = grad_outputs
        x8_NI, x_scale, weight8_OI, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        dy8_NO, dy_scale = quantize(dy_NO, E5M2)
        dx_NI = dweight_OI = None
        if ctx.needs_input_grad[0]:
            dx_NI = product(dy8_NO, transposed(weight8_OI), dy_scale, weight_scale, dtype=x_dtype, fast=False)
        if ctx.needs_input_grad[1]:
            dweight_OI = product(
                transposed(dy8_NO, pad=True), transposed(x8_NI, pad=True), dy_scale, x_scale,
                dtype=weight_dtype, fast=False,
            )  # fmt: skip
        return dx_NI, dweight_OI, None


def fp8_linear(x: torch.Tensor, weight_OI: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """``x @ weight.T`` over the last axis in fp8, (..., I) -> (..., O) in ``dtype``, differentiable in both.

    The weight's gradient comes out in the weight's dtype. I and O must be multiples of 16; the number of rows is free.
    """
    y_NO = _Fp8Product.apply(x.reshape(-1, x.shape[-1]), weight_OI, dtype)
    assert isinstance(y_NO, torch.Tensor)
    return y_NO.view(*x.shape[:-1], weight_OI.shape[0])


class Fp8Linear(Linear):
    """A `Linear` that multiplies in fp8 in training mode. In eval mode it is the `Linear` that it replaced, so scores and
    samples are of the model that a checkpoint holds, in the arithmetic of everybody who loads it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Product over the last axis: (..., in_features) -> (..., out_features), in the compute dtype."""
        if not self.training:
            return super().forward(x)
        return fp8_linear(x, self.weight, dtype=self.compute_dtype)


@dataclass(frozen=True)
class Fp8Layers:
    """Which matrices of a model multiply in fp8, by name, and why each of the others does not."""

    switched: tuple[str, ...]
    kept: dict[str, str]

    def note(self) -> str:
        """One sentence for the log: how many, and the reasons of the others with their counts."""
        total = len(self.switched) + len(self.kept)
        reasons = "; ".join(f"{count} not: {why}" for why, count in Counter(self.kept.values()).items())
        return f"fp8: {len(self.switched)} of {total} matrices" + (f" ({reasons})" if reasons else "")


def use_fp8(model: nn.Module) -> Fp8Layers:
    """Let the Linears of a GPT's blocks multiply in fp8 from now on, in training mode, and say which.

    Each is replaced by an `Fp8Linear` with the very same parameter, so names, optimizer and checkpoints stay as they are.
    Call it before the model is compiled.
    """
    switched: list[str] = []
    kept: dict[str, str] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, Linear) or isinstance(module, Fp8Linear):
            continue
        why = _why_not(name, module)
        if why is not None:
            kept[name] = why
            continue
        with torch.device("meta"):
            new = Fp8Linear(module.in_features, module.out_features, compute_dtype=module.compute_dtype)
        new.weight = module.weight
        new.train(module.training)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
        switched.append(name)
    return Fp8Layers(tuple(switched), kept)


def _why_not(name: str, module: Linear) -> str | None:
    if not name.startswith("transformer.h."):
        return "outside the blocks"
    if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
        return f"a side is no multiple of {MULTIPLE}"
    if min(module.in_features, module.out_features) < SMALLEST_SIDE:
        return f"a side below {SMALLEST_SIDE} is too small to gain"
    return None
