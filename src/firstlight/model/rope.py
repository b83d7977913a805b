"""Rotary position embedding: each pair of numbers in a head is turned by an angle that grows with the position.

Su et al. 2021 (arXiv 2104.09864). A product of a turned query and a turned key depends on their distance only.

Shapes: B rows, T tokens, H heads, K head size, J = K/2 pairs.
"""

from __future__ import annotations

from typing import Any

import torch

from firstlight.model.precision import NORM_EPS


def rope_tables(num_positions: int, head_dim: int, *, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all angles, each (num_positions, head_dim/2) in float32, on the CPU.

    The angle of pair j at position t is ``t / base**(2j / head_dim)`` radians. Computed in float32 as the reference
    implementation in transformers does: a model trained here and exported there sees the same angles at every position.
    """
    pairs_J = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    inv_freq_J = 1.0 / (base ** (pairs_J / head_dim))
    positions_T = torch.arange(num_positions, dtype=torch.float32, device="cpu")
    angles_TJ = torch.outer(positions_T, inv_freq_J)
    return angles_TJ.cos(), angles_TJ.sin()


def normed_and_turned(
    x_BTHK: torch.Tensor, cos_TJ: torch.Tensor, sin_TJ: torch.Tensor, *, gain: float = 1.0
) -> torch.Tensor:
    """Heads divided by the root mean square of their numbers, turned by the angles of their token's position, and
    multiplied by ``gain``: (B,T,H,K) -> (B,H,T,K), in the dtype of ``x``.

    The norm keeps scores bounded (Henry et al. 2020, arXiv 2010.04245). The seed takes it after the rotation; a rotation
    keeps lengths, so the order changes rounding only.

    Pair j is made of numbers j and j + K/2 (the "half split", not neighbours) and turns clockwise:
    ``(a, b) -> (a cos + b sin, b cos - a sin)``, the sign that the `nanochat` type in transformers has.

    In float32 inside: for bf16 heads of 128 the error of ``q . k`` against float64 is then 0.026 (rms, of products of size
    11), and 0.052 with tables and arithmetic in bf16. Compiled, the wider arithmetic is fused away.
    """
    y_BHTK = _NormedAndTurned.apply(x_BTHK, cos_TJ, sin_TJ, gain)
    assert isinstance(y_BHTK, torch.Tensor)
    return y_BHTK


class _NormedAndTurned(torch.autograd.Function):
    """The backward pass is spelled out: each half of the heads by itself, so that compiled loops run over whole vectors.

    With n = x / r, r the root mean square, and u the incoming gradient turned back: dx = (u - n mean(u n)) / r.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BTHK: torch.Tensor, cos_TJ: torch.Tensor, sin_TJ: torch.Tensor, gain: float
    ) -> torch.Tensor:
        a, b = _halves(x_BTHK)
        mean_square_BTH1 = (a * a + b * b).sum(dim=-1, keepdim=True) / x_BTHK.shape[-1]
        inverse_BTH1 = torch.rsqrt(mean_square_BTH1 + NORM_EPS)
        factor_BTH1 = inverse_BTH1 * gain
        a, b = a * factor_BTH1, b * factor_BTH1
        cos, sin = cos_TJ[:, None, :], sin_TJ[:, None, :]
        y_BTHK = torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x_BTHK.dtype)
        ctx.save_for_backward(x_BTHK, inverse_BTH1, cos_TJ, sin_TJ)
        ctx.gain = gain
        return y_BTHK.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy_BHTK,) = grad_outputs
        x_BTHK, inverse_BTH1, cos_TJ, sin_TJ = ctx.saved_tensors
        cos, sin = cos_TJ[:, None, :], sin_TJ[:, None, :]
        dy_a, dy_b = _halves(dy_BHTK.transpose(1, 2))
        u_a, u_b = (dy_a * cos - dy_b * sin) * ctx.gain, (dy_b * cos + dy_a * sin) * ctx.gain
        a, b = _halves(x_BTHK)
        a, b = a * inverse_BTH1, b * inverse_BTH1
        mean_BTH1 = (u_a * a + u_b * b).sum(dim=-1, keepdim=True) / x_BTHK.shape[-1]
        dx = torch.cat(((u_a - a * mean_BTH1) * inverse_BTH1, (u_b - b * mean_BTH1) * inverse_BTH1), dim=-1)
        return dx.to(x_BTHK.dtype), None, None, None


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    J = x.shape[-1] // 2
    return x[..., :J].float(), x[..., J:].float()
