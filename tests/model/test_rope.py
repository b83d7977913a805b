"""Claims: heads get length sqrt(K) times the gain, products depend on distance only, angles are those of the paper, in
float32, and gradients are those of the formula written plainly."""

from __future__ import annotations

import math

import pytest
import torch

from firstlight.model.rope import normed_and_turned, rope_tables


def plain(x_BTHK: torch.Tensor, *, base: float, gain: float) -> torch.Tensor:
    """The formula in float64 on complex numbers: pair j of token t is multiplied by exp(-i t / base^(j/J))."""
    x = x_BTHK.double()
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    J = x.shape[-1] // 2
    angles_TJ = torch.arange(x.shape[1], dtype=torch.float64)[:, None] / base ** (torch.arange(J) / J)
    turned = torch.complex(x[..., :J], x[..., J:]) * torch.polar(torch.ones_like(angles_TJ), -angles_TJ)[:, None]
    return gain * torch.cat((turned.real, turned.imag), dim=-1).transpose(1, 2)


def heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_angles_are_the_papers() -> None:
    cos_TJ, sin_TJ = rope_tables(50, 8, base=100.0)
    assert cos_TJ.shape == sin_TJ.shape == (50, 4)
    for t in (0, 1, 49):
        for j in range(4):
            angle = t / 100.0 ** (2 * j / 8)
            assert math.isclose(cos_TJ[t, j].item(), math.cos(angle), abs_tol=1e-5)
            assert math.isclose(sin_TJ[t, j].item(), math.sin(angle), abs_tol=1e-5)


def test_first_pair_turns_clockwise_by_one_radian_a_position() -> None:
    cos_TJ, sin_TJ = rope_tables(2, 4, base=10000.0)
    # The root mean square of (1, 0, 0, 0) is 1/2.
    x_BTHK = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]])
    turned = normed_and_turned(x_BTHK, cos_TJ, sin_TJ)
    assert turned.shape == (1, 1, 2, 4)
    assert torch.allclose(turned[0, 0, 0], torch.tensor([2.0, 0.0, 0.0, 0.0]), atol=1e-5), "position 0 does not turn"
    expected = torch.tensor([2 * math.cos(1.0), 0.0, -2 * math.sin(1.0), 0.0])
    assert torch.allclose(turned[0, 0, 1], expected, atol=1e-5)


@pytest.mark.parametrize("gain", [1.0, 1.3])
@pytest.mark.parametrize("shape", [(2, 30, 3, 16), (1, 1, 1, 2), (3, 7, 5, 10)])
def test_values_and_gradients_are_those_of_the_plain_formula(shape: tuple[int, ...], gain: float) -> None:
    tables = rope_tables(shape[1], shape[3], base=100.0)
    x_BTHK, weight_BHTK = heads(*shape).requires_grad_(), heads(*shape, seed=1).transpose(1, 2)
    y_BHTK = normed_and_turned(x_BTHK, *tables, gain=gain)
    assert y_BHTK.is_contiguous()
    expected_BHTK = plain(x_BTHK, base=100.0, gain=gain)
    assert (y_BHTK - expected_BHTK).abs().max() < 1e-5
    (grad,) = torch.autograd.grad((y_BHTK * weight_BHTK).sum(), x_BTHK)
    (expected,) = torch.autograd.grad((expected_BHTK * weight_BHTK).sum(), x_BTHK)
    assert (grad - expected).abs().max() < 1e-5


def test_product_depends_on_the_distance_only() -> None:
    T = 40
    q, k = (heads(1, 1, 1, 16, seed=i).expand(1, T, 1, 16) for i in range(2))
    tables = rope_tables(T, 16, base=10000.0)
    scores_TT = normed_and_turned(q, *tables)[0, 0] @ normed_and_turned(k, *tables)[0, 0].T
    for distance in (0, 1, 7, 25):
        diagonal = scores_TT.diagonal(-distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-4
    assert (scores_TT[5, 5] - scores_TT[5, 0]).abs() > 1e-2, "distances do matter"


def test_heads_turn_alike_and_bf16_is_turned_in_float32() -> None:
    x_BTHK = heads(1, 9, 1, 8).bfloat16().expand(1, 9, 2, 8)
    turned = normed_and_turned(x_BTHK, *rope_tables(9, 8, base=10000.0))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned[:, 0], turned[:, 1])
    assert torch.equal(turned, normed_and_turned(x_BTHK.float(), *rope_tables(9, 8, base=10000.0)).bfloat16())
