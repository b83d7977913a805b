"""Claims: a rotation keeps lengths, products depend on distance only, angles are those of the paper, in float32."""

from __future__ import annotations

import math

import torch

from firstlight.model.rope import rope_tables, rotate


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
    x_BTHK = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]])
    turned = rotate(x_BTHK, cos_TJ, sin_TJ)
    assert torch.equal(turned[0, 0, 0], x_BTHK[0, 0, 0]), "position 0 does not turn"
    expected = torch.tensor([math.cos(1.0), 0.0, -math.sin(1.0), 0.0])
    assert torch.allclose(turned[0, 1, 0], expected, atol=1e-6)


def test_rotation_keeps_lengths() -> None:
    x_BTHK = torch.randn(2, 30, 3, 16, generator=torch.Generator().manual_seed(0))
    turned = rotate(x_BTHK, *rope_tables(30, 16, base=10000.0))
    assert torch.allclose(turned.norm(dim=-1), x_BTHK.norm(dim=-1), atol=1e-5)


def test_product_depends_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    T = 40
    q = torch.randn(1, 1, 1, 16, generator=generator).expand(1, T, 1, 16)
    k = torch.randn(1, 1, 1, 16, generator=generator).expand(1, T, 1, 16)
    tables = rope_tables(T, 16, base=10000.0)
    scores_TT = rotate(q, *tables)[0, :, 0] @ rotate(k, *tables)[0, :, 0].T
    for distance in (0, 1, 7, 25):
        diagonal = scores_TT.diagonal(-distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-4
    assert (scores_TT[5, 5] - scores_TT[5, 0]).abs() > 1e-2, "distances do matter"


def test_heads_turn_alike_and_bf16_is_turned_in_float32() -> None:
    x_BTHK = torch.randn(1, 9, 1, 8, generator=torch.Generator().manual_seed(0)).bfloat16().expand(1, 9, 2, 8)
    turned = rotate(x_BTHK, *rope_tables(9, 8, base=10000.0))
    assert turned.dtype == torch.float32
    assert torch.equal(turned[:, :, 0], turned[:, :, 1])
    assert torch.equal(turned, rotate(x_BTHK.float(), *rope_tables(9, 8, base=10000.0)))
