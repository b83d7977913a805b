"""Self-attention of whole rows in native code, from projections to mixed values: `attend_natively`.

Norm, rotation, scores, softmax and their gradients in one walk over blocks that stay in a core's cache
(`attention.cpp`). The oracle is `firstlight.model.rope.normed_and_turned` followed by
`firstlight.model.attention.attend`.

Shapes: B rows, T tokens, H query heads, G key/value heads, K head size, J = K/2.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_void_p
from pathlib import Path
from typing import Any

import torch

from firstlight.model.precision import NORM_EPS
from firstlight.runtime.native.blas import find_sgemm
from firstlight.runtime.native.library import library_of, why_not

SOURCE = Path(__file__).with_name("attention.cpp")

BLOCK_ROWS = 64
"""Query tokens in a block, as in attention.cpp."""


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "cosine", "sine")),
        *((name, c_int32) for name in ("B", "T", "H", "G", "K", "q_row", "k_row", "v_row")),
        *((name, c_float) for name in ("gain", "eps")),
        ("sgemm", c_void_p),
        ("num_threads", c_int32),
    )


def why_not_native_attention() -> str | None:
    """Why there is no native attention on this machine; None where there is. May compile, once on a machine."""
    return why_not(SOURCE) or ("torch's library shows no sgemm_" if find_sgemm() is None else None)


def attend_natively(
    q_BTHK: torch.Tensor,
    k_BTGK: torch.Tensor,
    v_BTGK: torch.Tensor,
    cos_TJ: torch.Tensor,
    sin_TJ: torch.Tensor,
    *,
    gain: float,
) -> torch.Tensor:
    """Each token's softmax-weighted mean of the values at its own and earlier places, (B,T,H,K), differentiable.

    All float32 on a CPU. q and k as the projections give them: they are divided by their root mean square, turned, and
    multiplied by ``gain``. Raises ValueError for tensors that do not belong together.
    """
    y_BTHK, _ = torch.ops.firstlight.attention(q_BTHK, k_BTGK, v_BTGK, cos_TJ.float(), sin_TJ.float(), gain)
    return y_BTHK


def attention_forward(
    q_BTHK: torch.Tensor,
    k_BTGK: torch.Tensor,
    v_BTGK: torch.Tensor,
    cos_TJ: torch.Tensor,
    sin_TJ: torch.Tensor,
    gain: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of `attend_natively`, and what its backward pass needs: each query's log of the sum of exponentials (B,H,T).

    q, k and v may be columns of one matrix.
    """
    B, T, H, _ = q_BTHK.shape
    tensors = _readable(q_BTHK, k_BTGK, v_BTGK, cos_TJ, sin_TJ)
    y_BTHK = torch.empty_like(q_BTHK, memory_format=torch.contiguous_format)
    log_sums_BHT = q_BTHK.new_empty(B, H, T)
    arguments = _arguments(tensors, gain)
    if y_BTHK.numel() == 0:
        return y_BTHK, log_sums_BHT
    library_of(SOURCE).attention_forward(ctypes.byref(arguments), _pointer(y_BTHK), _pointer(log_sums_BHT))
    return y_BTHK, log_sums_BHT


def attention_backward(
    q_BTHK: torch.Tensor,
    k_BTGK: torch.Tensor,
    v_BTGK: torch.Tensor,
    cos_TJ: torch.Tensor,
    sin_TJ: torch.Tensor,
    gain: float,
    y_BTHK: torch.Tensor,
    log_sums_BHT: torch.Tensor,
    dy_BTHK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, from the arguments and results of `attention_forward` and the result's gradient."""
    tensors = [x.contiguous() for x in (q_BTHK, k_BTGK, v_BTGK, cos_TJ, sin_TJ)]
    dq_BTHK, dk_BTGK, dv_BTGK = (torch.empty_like(x) for x in tensors[:3])
    attention_backward_into((dq_BTHK, dk_BTGK, dv_BTGK), tensors, gain, y_BTHK, log_sums_BHT, dy_BTHK)
    return dq_BTHK, dk_BTGK, dv_BTGK


def attention_backward_into(
    gradients: tuple[torch.Tensor, ...],
    tensors: Sequence[torch.Tensor],
    gain: float,
    y_BTHK: torch.Tensor,
    log_sums_BHT: torch.Tensor,
    dy_BTHK: torch.Tensor,
) -> None:
    """The same, written to where the caller wants it. tensors: q, k, v, cosine, sine; gradients lie as q, k and v do.

    Raises ValueError where they do not.
    """
    given = [x.contiguous() for x in (y_BTHK, log_sums_BHT, dy_BTHK)]
    tensors = _readable(*tensors)
    if any(d.stride() != x.stride() or d.shape != x.shape for d, x in zip(gradients, tensors, strict=False)):
        raise ValueError("gradients of q, k and v must lie as these do")
    arguments = _arguments(tensors, gain)
    if dy_BTHK.numel() > 0:
        library_of(SOURCE).attention_backward(ctypes.byref(arguments), *map(_pointer, given), *map(_pointer, gradients))


# The same as operations of torch's, which compiled code can call. Called as they stand they would import torch's compiler,
# which takes 2 s and 70 MB.
_forward = torch.library.custom_op(
    "firstlight::attention",
    attention_forward,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor cosine, Tensor sine, float gain) -> (Tensor, Tensor)",
)
_backward = torch.library.custom_op(
    "firstlight::attention_backward",
    attention_backward,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor cosine, Tensor sine, float gain, Tensor y, Tensor log_sums, Tensor dy)"
    " -> (Tensor, Tensor, Tensor)",
)


@_forward.register_fake
def _(q, k, v, cosine, sine, gain):
    B, T, H, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(B, H, T)


@_backward.register_fake
def _(q, k, v, cosine, sine, gain, y, log_sums, dy):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.gain = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy_BTHK: torch.Tensor | None, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if dy_BTHK is None:
        return (None,) * 6
    q, k, v, cosine, sine, y, log_sums = ctx.saved_tensors
    return (
        *torch.ops.firstlight.attention_backward(q, k, v, cosine, sine, ctx.gain, y, log_sums, dy_BTHK),
        None,
        None,
        None,
    )


_forward.register_autograd(_gradients, setup_context=_keep)


def _readable(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The same numbers as native code can read them: heads of a token one behind another, tokens a row apart."""

    def is_in_rows(x: torch.Tensor) -> bool:
        strides = x.stride()
        return x.dim() == 4 and strides[2:] == (x.shape[3], 1) and strides[0] == x.shape[1] * strides[1]

    return [x if is_in_rows(x) else x.contiguous() for x in tensors]


def _arguments(tensors: list[torch.Tensor], gain: float) -> _Attention:
    """tensors: q, k, v, cosine, sine, as `_readable` gives them; the structure holds their addresses only.

    Raises ValueError for tensors that do not belong together.
    """
    q_BTHK, k_BTGK, _, cos_TJ, _ = tensors
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    # Native code reads what it is told to: no optimisation may leave these out, as it may an assert.
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in tensors):
        raise ValueError(f"float32 on a CPU is needed, not {[f'{x.dtype} on {x.device}' for x in tensors]}")
    if not k_BTGK.shape == tensors[2].shape == (B, T, G, K) or H % G or K % 2:
        raise ValueError(
            f"q {tuple(q_BTHK.shape)} cannot attend to k {tuple(k_BTGK.shape)}, v {tuple(tensors[2].shape)}"
        )
    if not cos_TJ.shape == tensors[4].shape == (T, K // 2):
        raise ValueError(f"angles of {T} tokens and {K // 2} pairs are needed, not {tuple(cos_TJ.shape)}")
    addresses = [x.data_ptr() for x in tensors]
    rows = [x.stride(1) for x in tensors[:3]]
    return _Attention(*addresses, B, T, H, G, K, *rows, gain, NORM_EPS, find_sgemm(), torch.get_num_threads())


def _pointer(x: torch.Tensor) -> c_void_p:
    return c_void_p(x.data_ptr())
