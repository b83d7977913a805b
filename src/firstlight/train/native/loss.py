"""What stands between the loss layer's matrix products, in native code (`loss.cpp`): two kernels with the signature of
`firstlight.train.loss.loss_kernel`, which is their oracle.

Shapes: R tokens of a chunk, V ids.
"""

from __future__ import annotations

from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import torch

from firstlight.runtime.native.library import library_of, why_not

SOURCE = Path(__file__).with_name("loss.cpp")

FUNCTIONS = {torch.float32: "losses_float32", torch.bfloat16: "losses_bfloat16"}


def why_not_native_loss(*, device_type: str, dtype: torch.dtype) -> str | None:
    """Why the kernel for logits of this dtype is torch's; None where it is native. May compile, once on a machine."""
    if device_type != "cpu":
        return f"native code is for CPUs, not {device_type}"
    if dtype not in FUNCTIONS:
        return f"the native kernel knows float32 and bfloat16, not {dtype}"
    return why_not(SOURCE)


def native_loss(z_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, softcap: float) -> torch.Tensor:
    """Weighted losses in nats, (R,) float32, of logits before the cap. A negative target has weight 0.

    Raises ValueError for tensors that do not belong together.
    """
    return _losses(z_RV, targets_R, weights_R, softcap, with_gradient=False)


def native_loss_and_grad_(
    z_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, softcap: float
) -> torch.Tensor:
    """Weighted losses in nats, (R,) float32; ``z_RV``, logits before the cap, is overwritten by the loss's gradient.

    Raises ValueError for tensors that do not belong together.
    """
    return _losses(z_RV, targets_R, weights_R, softcap, with_gradient=True)


def _losses(
    z_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, softcap: float, *, with_gradient: bool
) -> torch.Tensor:
    R, V = z_RV.shape
    targets_R, weights_R = targets_R.contiguous(), weights_R.contiguous()
    # Native code reads what it is told to: no optimisation may leave these out, as it may an assert.
    if (targets_R.dtype, weights_R.dtype) != (torch.int64, torch.float32) or z_RV.dtype not in FUNCTIONS:
        raise ValueError(f"not logits, targets and weights: {z_RV.dtype}, {targets_R.dtype}, {weights_R.dtype}")
    if not targets_R.shape == weights_R.shape == (R,) or z_RV.stride(1) != 1 or z_RV.device.type != "cpu":
        raise ValueError(f"{R} rows of {V} logits do not go with {len(targets_R)} targets and {len(weights_R)} weights")
    if R and int(targets_R.max()) >= V:
        raise ValueError(f"target {int(targets_R.max())} is none of {V} ids")
    losses_R = torch.empty(R, dtype=torch.float32, device="cpu")
    function = getattr(library_of(SOURCE), FUNCTIONS[z_RV.dtype])
    function.argtypes = _ARGUMENTS
    function(
        z_RV.data_ptr(), z_RV.stride(0), targets_R.data_ptr(), weights_R.data_ptr(), R, V, softcap, with_gradient,
        losses_R.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return losses_R


_ARGUMENTS = (
    c_void_p, c_int64, c_void_p, c_void_p, c_int32, c_int32, c_float, c_int32, c_void_p, c_int32,
)  # fmt: skip
