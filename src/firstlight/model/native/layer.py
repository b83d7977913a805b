"""The branches of a layer with their gradients written out, for float32 on a CPU: `attention_branch` and `mlp_branch`.

    attention:  x + o(attend(q(n), k(n), v(n))), n = norm(x)
    MLP:        x + down(relu(up(n))^2), or with a gate x + down(silu(gate(n)) * up(n)), n = norm(x)

The products are torch's; what is between them is native code (`layer.cpp`, `attention.cpp`). Autograd would keep what is
between any two operations; here as little is kept as the backward pass can do with, and what is cheap is made once more.
Nothing has to be compiled for a model, and no submodule is called: hooks see nothing. A backward pass can be taken once.
The oracle is `firstlight.model.gpt.Block`.

Shapes: B rows, T tokens, N = B * T, D width, H query heads, G key/value heads, K head size, C = G * K, F inner width,
E channels that the gate of value embeddings reads, X = D + 2 C.
"""

from __future__ import annotations

from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from firstlight.model.native.attention import attention_backward_into, attention_forward, why_not_native_attention
from firstlight.model.precision import NORM_EPS
from firstlight.runtime.native.library import library_of, why_not

SOURCE = Path(__file__).with_name("layer.cpp")


def why_not_native_layers() -> str | None:
    """Why there are no native branches on this machine; None where there are. May compile, once on a machine."""
    return why_not_native_attention() or why_not(SOURCE)


class AttentionWeights(NamedTuple):
    """Weights of a layer's attention as its projections have them: (D,D), (C,D), (C,D), (D,D), and (G,E) or None."""

    q_DD: torch.Tensor
    k_CD: torch.Tensor
    v_CD: torch.Tensor
    out_DD: torch.Tensor
    gate_GE: torch.Tensor | None


def norm(x_BTD: torch.Tensor) -> torch.Tensor:
    """`firstlight.model.precision.rms_norm` of float32 on a CPU, differentiable."""
    return _apply(_Norm, x_BTD.contiguous())


def attention_branch(
    x_BTD: torch.Tensor,
    weights: AttentionWeights,
    cos_TJ: torch.Tensor,
    sin_TJ: torch.Tensor,
    value_embed_BTC: torch.Tensor | None = None,
    *,
    head_dim: int,
    gain: float,
) -> torch.Tensor:
    """``x`` plus what attention adds to it, (B,T,D), differentiable once. All float32 on a CPU.

    value_embed_BTC: added to the values, times 2 sigmoid of what the gate says of each head; with a gate only.
    """
    if weights.gate_GE is None:
        value_embed_BTC = None
    elif value_embed_BTC is not None:
        value_embed_BTC = value_embed_BTC.contiguous()
    return _apply(_AttentionBranch, x_BTD.contiguous(), *weights, value_embed_BTC, cos_TJ, sin_TJ, head_dim, gain)


def mlp_branch(
    x_BTD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor, gate_FD: torch.Tensor | None = None
) -> torch.Tensor:
    """``x`` plus what the MLP adds to it, (B,T,D), differentiable once. All float32 on a CPU.

    With ``gate_FD`` it is the gated MLP, else that of the squared ReLU.
    """
    if gate_FD is not None:
        return _apply(_GatedBranch, x_BTD.contiguous(), gate_FD, up_FD, down_DF)
    return _apply(_MLPBranch, x_BTD.contiguous(), up_FD, down_DF)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: torch.Tensor) -> torch.Tensor:
        n_ND, inverse_N = _normed(x_BTD)
        ctx.save_for_backward(n_ND, inverse_N)
        return n_ND.view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:  # pyrefly: ignore[bad-override]
        n_ND, inverse_N = ctx.saved_tensors
        dy_ND = grad_outputs[0].reshape(n_ND.shape).contiguous()
        dx_ND = torch.empty_like(dy_ND)
        _norm_backward(dy_ND, n_ND, inverse_N, None, into=dx_ND)
        return dx_ND.view_as(grad_outputs[0])


class _AttentionBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD, q_DD, k_CD, v_CD, out_DD, gate_GE, value_embed_BTC, cos_TJ, sin_TJ, head_dim, gain
    ) -> torch.Tensor:  # fmt: skip
        B, T, D = x_BTD.shape
        n_ND, inverse_N = _normed(x_BTD)
        qkv_NX = torch.mm(n_ND, torch.cat((q_DD, k_CD, v_CD)).T)
        q_BTHK, k_BTGK, v_BTGK = _heads(qkv_NX, B, T, len(k_CD), head_dim)
        gate_NG1 = None
        if value_embed_BTC is not None:
            v_NGK = v_BTGK.flatten(0, 1)
            gate_NG1 = (n_ND[:, : gate_GE.shape[1]] @ gate_GE.T).sigmoid_().mul_(2)[..., None]
            v_NGK.addcmul_(gate_NG1, value_embed_BTC.reshape(v_NGK.shape))
        y_BTHK, log_sums_BHT = attention_forward(q_BTHK, k_BTGK, v_BTGK, cos_TJ, sin_TJ, gain)
        ctx.save_for_backward(
            n_ND, inverse_N, qkv_NX, y_BTHK, log_sums_BHT, cos_TJ, sin_TJ,
            q_DD, k_CD, v_CD, out_DD, gate_GE, gate_NG1, value_embed_BTC,
        )  # fmt: skip
        ctx.gain = gain
        return torch.addmm(x_BTD.view(-1, D), y_BTHK.view(-1, D), out_DD.T).view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        (
            n_ND, inverse_N, qkv_NX, y_BTHK, log_sums_BHT, cos_TJ, sin_TJ,
            q_DD, k_CD, v_CD, out_DD, gate_GE, gate_NG1, value_embed_BTC,
        ) = ctx.saved_tensors  # fmt: skip
        dx_ND = grad_outputs[0].reshape(n_ND.shape).contiguous()
        dout_DD = torch.mm(dx_ND.T, y_BTHK.view(n_ND.shape))
        B, T, _, K = y_BTHK.shape
        dqkv_NX = torch.empty_like(qkv_NX)
        heads, dheads = (_heads(x, B, T, len(k_CD), K) for x in (qkv_NX, dqkv_NX))
        dy_BTHK = torch.mm(dx_ND, out_DD).view_as(y_BTHK)
        attention_backward_into(dheads, (*heads, cos_TJ, sin_TJ), ctx.gain, y_BTHK, log_sums_BHT, dy_BTHK)
        dn_ND = torch.mm(dqkv_NX, torch.cat((q_DD, k_CD, v_CD)))
        dweights = torch.mm(dqkv_NX.T, n_ND).split((len(q_DD), len(k_CD), len(v_CD)))
        dgate_GE = dvalue_embed_BTC = None
        if gate_NG1 is not None:
            dvalue_embed_BTC, dgate_NG1 = torch.empty_like(value_embed_BTC), torch.empty_like(gate_NG1)
            library_of(SOURCE).gate_backward(
                _pointer(dheads[2]), c_int64(dqkv_NX.stride(0)), _pointer(value_embed_BTC), _pointer(gate_NG1),
                c_int64(len(n_ND)), c_int32(gate_NG1.shape[1]), c_int32(K), _pointer(dvalue_embed_BTC),
                _pointer(dgate_NG1), _threads(),
            )  # fmt: skip
            # 2 s' = 2 s (1 - s) for the gate 2 s.
            dz_NG = (dgate_NG1 * gate_NG1 * (1 - gate_NG1 / 2)).squeeze(-1)
            dgate_GE = torch.mm(dz_NG.T, n_ND[:, : gate_GE.shape[1]])
            dn_ND[:, : gate_GE.shape[1]] += dz_NG @ gate_GE
        _norm_backward(dn_ND, n_ND, inverse_N, dx_ND, into=dn_ND)
        return (
            dn_ND.view_as(grad_outputs[0]), *dweights, dout_DD, dgate_GE, dvalue_embed_BTC, None, None, None, None,
        )  # fmt: skip


class _MLPBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
        n_ND, inverse_N = _normed(x_BTD)
        h_NF = torch.mm(n_ND, up_FD.T)
        a_NF = torch.empty_like(h_NF) if any(ctx.needs_input_grad) else h_NF
        library_of(SOURCE).squared_relu_forward(_pointer(h_NF), c_int64(h_NF.numel()), _pointer(a_NF), _threads())
        ctx.save_for_backward(n_ND, inverse_N, h_NF, up_FD, down_DF)
        return torch.addmm(x_BTD.view(n_ND.shape), a_NF, down_DF.T).view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:  # pyrefly: ignore[bad-override]
        # Autograd's own check comes too late: native code overwrites h without its knowledge.
        n_ND, inverse_N, h_NF, up_FD, down_DF = _saved_once(ctx)
        dx_ND = grad_outputs[0].reshape(n_ND.shape).contiguous()
        dh_NF = torch.mm(dx_ND, down_DF)
        library_of(SOURCE).squared_relu_backward(_pointer(h_NF), c_int64(h_NF.numel()), _pointer(dh_NF), _threads())
        a_NF = h_NF
        ddown_DF = torch.mm(dx_ND.T, a_NF)
        dup_FD = torch.mm(dh_NF.T, n_ND)
        dn_ND = torch.mm(dh_NF, up_FD)
        _norm_backward(dn_ND, n_ND, inverse_N, dx_ND, into=dn_ND)
        return dn_ND.view_as(grad_outputs[0]), dup_FD, ddown_DF


class _GatedBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
    ) -> torch.Tensor:
        n_ND, inverse_N = _normed(x_BTD)
        g_NF, u_NF = torch.mm(n_ND, gate_FD.T), torch.mm(n_ND, up_FD.T)
        a_NF = torch.empty_like(u_NF) if any(ctx.needs_input_grad) else u_NF
        library_of(SOURCE).gated_forward(
            _pointer(g_NF), _pointer(u_NF), c_int64(u_NF.numel()), _pointer(a_NF), _threads()
        )
        ctx.save_for_backward(n_ND, inverse_N, g_NF, u_NF, gate_FD, up_FD, down_DF)
        return torch.addmm(x_BTD.view(n_ND.shape), a_NF, down_DF.T).view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:  # pyrefly: ignore[bad-override]
        n_ND, inverse_N, dg_NF, du_NF, gate_FD, up_FD, down_DF = _saved_once(ctx)
        dx_ND = grad_outputs[0].reshape(n_ND.shape).contiguous()
        a_NF = torch.mm(dx_ND, down_DF)
        library_of(SOURCE).gated_backward(
            _pointer(dg_NF), _pointer(du_NF), c_int64(du_NF.numel()), _pointer(a_NF), _threads()
        )
        ddown_DF = torch.mm(dx_ND.T, a_NF)
        dn_ND = torch.mm(dg_NF, gate_FD).addmm_(du_NF, up_FD)
        dgate_FD, dup_FD = torch.mm(dg_NF.T, n_ND), torch.mm(du_NF.T, n_ND)
        _norm_backward(dn_ND, n_ND, inverse_N, dx_ND, into=dn_ND)
        return dn_ND.view_as(grad_outputs[0]), dgate_FD, dup_FD, ddown_DF


def _heads(qkv_NX: torch.Tensor, B: int, T: int, C: int, K: int) -> tuple[torch.Tensor, ...]:
    """Views (B,T,H,K), (B,T,G,K), (B,T,G,K) of a matrix whose columns are queries, keys and values."""
    parts = qkv_NX.split((qkv_NX.shape[1] - 2 * C, C, C), dim=1)
    return tuple(part.unflatten(1, (part.shape[1] // K, K)).unflatten(0, (B, T)) for part in parts)


def _saved_once(ctx: Any) -> tuple[torch.Tensor, ...]:
    """What a forward pass saved for one backward pass, which overwrites it. Raises RuntimeError for a second one."""
    if getattr(ctx, "is_used", False):
        raise RuntimeError("what the MLP kept was used up by an earlier backward pass")
    ctx.is_used = True
    return ctx.saved_tensors


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> torch.Tensor:
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    # Native code reads what it is told to: no optimisation may leave this out, as it may an assert.
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in tensors):
        raise ValueError(f"float32 on a CPU is needed, not {[f'{x.dtype} on {x.device}' for x in tensors]}")
    result = function.apply(*arguments)
    assert isinstance(result, torch.Tensor)
    return result


def _normed(x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """n (N,D), and the inverse of each token's root mean square (N)."""
    D = x_BTD.shape[-1]
    n_ND = torch.empty(x_BTD.numel() // D, D, dtype=torch.float32, device="cpu")
    inverse_N = n_ND.new_empty(len(n_ND))
    library_of(SOURCE).norm_forward(
        _pointer(x_BTD), c_int64(len(n_ND)), c_int32(D), c_float(NORM_EPS), _pointer(n_ND), _pointer(inverse_N), _threads()
    )  # fmt: skip
    return n_ND, inverse_N


def _norm_backward(
    dn_ND: torch.Tensor,
    n_ND: torch.Tensor,
    inverse_N: torch.Tensor,
    past_ND: torch.Tensor | None,
    *,
    into: torch.Tensor,
) -> None:
    """The gradient of x from that of n, plus ``past_ND``, which came past the branch. ``into`` may be ``dn_ND``."""
    N, D = n_ND.shape
    past = None if past_ND is None else _pointer(past_ND)
    library_of(SOURCE).norm_backward(
        _pointer(dn_ND), _pointer(n_ND), _pointer(inverse_N), past, c_int64(N), c_int32(D), _pointer(into), _threads()
    )


def _pointer(x: torch.Tensor) -> c_void_p:
    return c_void_p(x.data_ptr())


def _threads() -> c_int32:
    return c_int32(torch.get_num_threads())
