"""The gradients that the kernel spells out, against autograd in float64. Its outputs are compared in test_attention.py."""

from __future__ import annotations

import pytest
import torch

from firstlight.model.blocked import BLOCK_ROWS, BlockedAttention, causal_mask, query_blocks


def heads(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    hidden = ~causal_mask(q.shape[2], k.shape[2], q.device, window=window)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("is_bounded", [False, True])
@pytest.mark.parametrize("window", [None, 1, 50, BLOCK_ROWS, BLOCK_ROWS + 60])
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(("T", "num_past"), [(1, 0), (BLOCK_ROWS + 1, 0), (2 * BLOCK_ROWS + 3, 5), (7, 200)])
def test_gradients_are_autograds_in_float64(
    T: int, num_past: int, H: int, G: int, window: int | None, is_bounded: bool
) -> None:
    S = num_past + T
    leaves = [heads(2, H, T, 6, seed=0), heads(2, G, S, 6, seed=1), heads(2, G, S, 6, seed=2)]
    dy = heads(2, H, T, 6, seed=3)
    results = []
    for dtype in (torch.float32, torch.float64):
        x = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        y = plain(*x, window) if dtype == torch.float64 else BlockedAttention.apply(*x, num_past, window, is_bounded)
        results.append([y.detach(), *torch.autograd.grad((y * dy.to(dtype)).sum(), x)])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() < 2e-5


def test_bf16_gradients_are_near_float64() -> None:
    leaves = [heads(2, 2, 200, 64, seed=i).bfloat16() for i in range(3)]
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        x = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        y = plain(*x, None) if dtype == torch.float64 else BlockedAttention.apply(*x, 0, None, True)
        results.append(torch.autograd.grad(y.square().sum(), x))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - expected).norm() < 0.01 * expected.norm()


def test_blocks_by_hand() -> None:
    assert query_blocks(300, num_past=0, window=None) == [(0, 128, 0), (128, 256, 0), (256, 300, 0)]
    # Query 128 sees keys 129 - 100 = 29 and later ones; with 10 past keys, query 0 is key 10.
    assert query_blocks(130, num_past=0, window=100) == [(0, 128, 0), (128, 130, 29)]
    assert query_blocks(130, num_past=10, window=100) == [(0, 128, 0), (128, 130, 39)]
