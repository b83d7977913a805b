"""Claims: weights stay float32 while products are in the compute dtype; norms accumulate in float32."""

from __future__ import annotations

import torch

from firstlight.model.precision import NORM_EPS, Embedding, Linear, rms_norm


def filled(in_features: int, out_features: int, compute_dtype: torch.dtype) -> Linear:
    linear = Linear(in_features, out_features, compute_dtype=compute_dtype)
    with torch.no_grad():
        linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    return linear


def test_product_and_gradient_have_the_right_dtypes() -> None:
    linear = filled(8, 4, torch.bfloat16)
    y = linear(torch.ones(3, 8))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert linear.weight.dtype == torch.float32
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


def test_float32_product_is_torchs() -> None:
    linear, reference = filled(8, 4, torch.float32), torch.nn.Linear(8, 4, bias=False)
    reference.load_state_dict(linear.state_dict())
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(linear(x), reference(x))


def test_small_gradients_add_up_in_float32() -> None:
    """256 micro-batches of gradient 1 after one of 256: a bf16 sum would stay at 256, since 257 rounds to 256 there."""
    linear = filled(1, 1, torch.bfloat16)
    for size in [256.0] + [1.0] * 256:
        linear(torch.full((1, 1), size)).sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.item() == 512.0


def test_update_smaller_than_a_bf16_step_is_kept() -> None:
    linear = filled(1, 1, torch.bfloat16)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        for _ in range(100):
            linear.weight += 0.0001
    assert abs(linear.weight.item() - 1.01) < 1e-5


def test_new_weights_are_nan_until_somebody_fills_them() -> None:
    assert Linear(2, 3, compute_dtype=torch.float32).weight.isnan().all()
    assert Embedding(2, 3).weight.isnan().all()


def test_embedding_looks_rows_up() -> None:
    embedding = Embedding(3, 2)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(6.0).view(3, 2))
    assert embedding(torch.tensor([[2, 0]])).tolist() == [[[4.0, 5.0], [0.0, 1.0]]]


def test_norm_is_the_formula_in_float64() -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
    assert (rms_norm(x).double() - expected).abs().max() < 1e-5
    rounded = rms_norm(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    # Once rounded: within half a bf16 step (2**-9 relative) of the exact norm of the same rounded numbers.
    x64 = x.bfloat16().double()
    expected = x64 / (x64.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
    assert ((rounded.double() - expected).abs() <= expected.abs() * 2**-8).all()


def test_norm_of_zeros_is_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 4)), torch.zeros(2, 4))
