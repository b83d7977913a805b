"""Claims about attention.

1. Both kernels give a plain float64 computation's result, for any grouping, length and number of past keys.
2. So do their gradients. 3. The choice is logged with its reason, and is the one that is taken.
"""

from __future__ import annotations

import pytest
import torch

from firstlight.model import attention
from firstlight.model.attention import (
    BLOCK_ROWS,
    LARGEST_UNSHIFTED_SCORE,
    MAX_BLOCKS,
    Kernel,
    attend,
    causal_mask,
    choose_kernel,
)

KERNELS = pytest.mark.parametrize(
    ("kernel", "bound"), [("sdpa", None), ("blocked", None), ("blocked", LARGEST_UNSHIFTED_SCORE)]
)
"""Each kernel, and the blocked one with and without a bound on the scores (of these heads none is near it)."""


def heads(B: int, H: int, T: int, K: int, *, seed: int) -> torch.Tensor:
    return torch.randn(B, H, T, K, generator=torch.Generator().manual_seed(seed))


def plain(q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor) -> torch.Tensor:
    """Attention of one query after another, in float64."""
    q, k, v = q_BHTK.double(), k_BGSK.double(), v_BGSK.double()
    H, T, K = q.shape[1:]
    G, S = k.shape[1:3]
    out = torch.empty_like(q)
    for h in range(H):
        g = h // (H // G)
        for t in range(T):
            seen = S - T + t + 1
            scores = (k[:, g, :seen] @ q[:, h, t, :, None])[..., 0] / K**0.5
            out[:, h, t] = (scores.softmax(-1)[..., None] * v[:, g, :seen]).sum(1)
    return out


@KERNELS
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("T", "num_past"), [(1, 0), (1, 9), (7, 0), (5, 6), (BLOCK_ROWS, 0), (BLOCK_ROWS + 1, 0), (2 * BLOCK_ROWS + 3, 4)]
)
def test_kernels_give_the_plain_result(
    kernel: Kernel, bound: float | None, H: int, G: int, T: int, num_past: int
) -> None:
    q = heads(2, H, T, 8, seed=0)
    k, v = heads(2, G, num_past + T, 8, seed=1), heads(2, G, num_past + T, 8, seed=2)
    assert (
        attend(q, k, v, num_past=num_past, score_bound=bound, kernel=kernel).double() - plain(q, k, v)
    ).abs().max() < 1e-5


@KERNELS
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2)])
def test_gradients_are_those_of_the_plain_result(kernel: Kernel, bound: float | None, H: int, G: int) -> None:
    T = BLOCK_ROWS + 5
    q, k, v = heads(1, H, T, 8, seed=0), heads(1, G, T, 8, seed=1), heads(1, G, T, 8, seed=2)
    weight = heads(1, H, T, 8, seed=3)
    grads = []
    for compute in (lambda a, b, c: attend(a, b, c, score_bound=bound, kernel=kernel), plain):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        grads.append(torch.autograd.grad((compute(*leaves) * weight).sum(), leaves))
    for ours, expected in zip(*grads, strict=True):
        assert (ours - expected).abs().max() < 1e-5


@KERNELS
def test_bf16_is_near_the_plain_result(kernel: Kernel, bound: float | None) -> None:
    q, k, v = (heads(2, 2, 300, 64, seed=i).bfloat16() for i in range(3))
    out = attend(q, k, v, score_bound=bound, kernel=kernel)
    assert out.dtype == torch.bfloat16
    assert (out.double() - plain(q, k, v)).abs().max() < 0.02


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
def test_large_scores_do_not_overflow(kernel: Kernel) -> None:
    q = heads(1, 1, 6, 4, seed=0) * 1e4
    # A bound that is true but large changes nothing; exponentials of such scores would be infinite.
    for bound in (None, 1e10):
        out = attend(q, q, heads(1, 1, 6, 4, seed=1), score_bound=bound, kernel=kernel)
        assert out.isfinite().all()


def test_mask_lets_the_last_query_see_the_last_key() -> None:
    expected = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert torch.equal(causal_mask(2, 4, torch.device("cpu")), expected)


def test_wrong_number_of_keys_is_noticed() -> None:
    q, k = heads(1, 1, 3, 4, seed=0), heads(1, 1, 5, 4, seed=1)
    with pytest.raises(AssertionError):
        attend(q, k, k, num_past=1)


@pytest.mark.parametrize(
    ("device_type", "dtype", "seq_len", "kernel"),
    [
        ("cpu", torch.bfloat16, 256, "blocked"),
        ("cpu", torch.bfloat16, MAX_BLOCKS * BLOCK_ROWS, "blocked"),
        ("cpu", torch.bfloat16, MAX_BLOCKS * BLOCK_ROWS + 1, "sdpa"),
        ("cpu", torch.bfloat16, 1, "sdpa"),
        ("cpu", torch.float32, 256, "sdpa"),
        ("cuda", torch.bfloat16, 256, "sdpa"),
        ("mps", torch.float32, 256, "sdpa"),
    ],
)
def test_choice_comes_with_its_reason(device_type: str, dtype: torch.dtype, seq_len: int, kernel: str) -> None:
    name, reason = choose_kernel(device_type=device_type, compute_dtype=dtype, seq_len=seq_len)
    assert name == kernel
    assert reason.startswith(f"attention {kernel}: ")
    assert len(reason) > 30


def test_choice_is_the_one_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("sdpa", "blocked"):
        function = getattr(attention, f"_attend_{name}")

        def record(*args, name=name, function=function, **kwargs):
            taken.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(attention, f"_attend_{name}", record)
    for dtype in (torch.bfloat16, torch.float32):
        q = heads(1, 1, 16, 8, seed=0).to(dtype)
        attend(q, q, q)
        assert taken.pop() == choose_kernel(device_type="cpu", compute_dtype=dtype, seq_len=16)[0]
