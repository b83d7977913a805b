"""The chunked loss layer against the formula in float64 autograd, whole and unchunked."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from firstlight.data.batch import IGNORE
from firstlight.errors import DataError
from firstlight.train import loss as loss_module
from firstlight.train.loss import default_chunk_rows, summed_cross_entropy, token_losses


@pytest.fixture(params=["native", "torch"], autouse=True)
def way(request, monkeypatch):
    """Native kernels between the products, and torch's operations in their place."""
    reason = loss_module.why_not_native_loss(device_type="cpu", dtype=torch.float32)
    if request.param == "torch":
        monkeypatch.setattr(loss_module, "why_not_native_loss", lambda **_: "this test wants torch's operations")
    elif reason is not None:
        pytest.skip(f"no native loss: {reason}")
    return request.param


def make_case(*, rows=3, tokens=17, width=16, vocab=50, seed=0, logit_scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator) * logit_scale
    targets = torch.randint(0, vocab, (rows, tokens), generator=generator)
    return x, weight, targets


def reference(x, weight, targets, weights=None, softcap=15.0):
    """Loss of each token, its sum's gradients: float64, torch's cross entropy, whole logits."""
    x = x.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    z = x @ weight.T
    c = softcap * torch.tanh(z / softcap) if softcap else z
    losses = torch.nn.functional.cross_entropy(
        c.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE
    )
    losses = losses.view(targets.shape)
    if weights is not None:
        losses = losses * torch.where(targets == IGNORE, 0.0, weights.double())
    losses.sum().backward()
    return losses.detach(), x.grad, weight.grad


def run(x, weight, targets, weights=None, *, softcap=15.0, dtype=torch.float32, grad_output=None, **kwargs):
    x = x.clone().requires_grad_()
    weight = weight.clone().requires_grad_()
    loss = summed_cross_entropy(x, weight, targets, weights, softcap=softcap, compute_dtype=dtype, **kwargs)
    loss.backward(grad_output)
    return loss.detach(), x.grad, weight.grad


def assert_near(ours, expected, relative):
    expected = expected.double()
    assert (ours.double() - expected).norm() <= relative * expected.norm() + 1e-12


@pytest.mark.parametrize("softcap", [15.0, 0.0, 2.5, 60.0])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"rows": 1, "tokens": 1},
        {"rows": 1, "tokens": 513, "vocab": 97},
        {"rows": 2, "tokens": 65, "vocab": 1000, "width": 24},
    ],
    ids=["small", "one token", "T=513", "V=1000"],
)
def test_loss_and_gradients_equal_float64_autograd(sizes, softcap):
    x, weight, targets = make_case(**sizes)
    losses, dx, dweight = reference(x, weight, targets, softcap=softcap)
    ours = run(x, weight, targets, softcap=softcap, chunk_rows=16)
    assert ours[0].item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert ours[0].dtype is torch.float32
    assert ours[0].shape == ()
    assert_near(ours[1], dx, 3e-6)
    assert_near(ours[2], dweight, 3e-6)


@pytest.mark.parametrize("chunk_rows", [1, 7, 50, 51, 1000, None])
def test_the_chunk_size_does_not_matter(chunk_rows):
    x, weight, targets = make_case()
    losses, dx, dweight = reference(x, weight, targets)
    ours = run(x, weight, targets, chunk_rows=chunk_rows)
    assert ours[0].item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert_near(ours[1], dx, 3e-6)
    assert_near(ours[2], dweight, 3e-6)


def test_gradients_pass_gradcheck_by_differences():
    x, weight, targets = make_case(rows=1, tokens=3, width=4, vocab=7)
    _, dx, _ = run(x, weight, targets)
    for i in range(4):
        step = torch.zeros_like(x)
        step[0, 1, i] = 1e-3
        high, low = (reference(x + s * step, weight, targets)[0].sum().item() for s in (1, -1))
        assert dx[0, 1, i].item() == pytest.approx((high - low) / 2e-3, abs=1e-4)


def test_ignored_targets_have_no_loss_and_no_gradient():
    x, weight, targets = make_case()
    targets[0, :5] = IGNORE
    targets[2] = IGNORE
    losses, dx, dweight = reference(x, weight, targets)
    loss, our_dx, our_dweight = run(x, weight, targets, chunk_rows=8)
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert (our_dx[0, :5] == 0).all()
    assert (our_dx[2] == 0).all()
    assert_near(our_dx, dx, 3e-6)
    assert_near(our_dweight, dweight, 3e-6)


def test_rows_where_every_target_is_ignored_give_zero_and_never_nan():
    x, weight, targets = make_case()
    targets[:] = IGNORE
    loss, dx, dweight = run(x, weight, targets, chunk_rows=8)
    assert loss.item() == 0
    assert (dx == 0).all()
    assert (dweight == 0).all()
    per_token = token_losses(x, weight, targets, softcap=15.0, compute_dtype=torch.float32)
    assert (per_token == 0).all()


def test_weights_multiply_losses_and_gradients():
    x, weight, targets = make_case()
    weights = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) * 3
    weights[1, 2] = 0.0
    targets[0, 0] = IGNORE
    losses, dx, dweight = reference(x, weight, targets, weights)
    ours = run(x, weight, targets, weights, chunk_rows=8)
    assert ours[0].item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert_near(ours[1], dx, 3e-6)
    assert_near(ours[2], dweight, 3e-6)


def test_a_factor_on_the_loss_reaches_the_gradients():
    x, weight, targets = make_case()
    _, dx, dweight = reference(x, weight, targets)
    ours = run(x, weight, targets, grad_output=torch.tensor(0.125))
    assert_near(ours[1], dx / 8, 3e-6)
    assert_near(ours[2], dweight / 8, 3e-6)


def test_gradient_flows_into_what_comes_before():
    x, weight, targets = make_case()
    layer = torch.nn.Linear(16, 16)
    summed_cross_entropy(layer(x), weight, targets, softcap=15.0, compute_dtype=torch.float32).backward()
    assert layer.weight.grad is not None
    before = layer.weight.grad.clone()
    layer.zero_grad()
    z = layer(x) @ weight.T
    c = 15 * torch.tanh(z / 15)
    torch.nn.functional.cross_entropy(c.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    assert_near(before, layer.weight.grad, 1e-5)


def test_two_micro_batches_add_their_gradients_into_the_same_weight():
    x, weight, targets = make_case(rows=4)
    weight = weight.requires_grad_()
    for part in (slice(0, 1), slice(1, 4)):
        summed_cross_entropy(x[part], weight, targets[part], softcap=15.0, compute_dtype=torch.float32).backward()
    assert_near(weight.grad, reference(x, weight, targets)[2], 3e-6)


@pytest.mark.parametrize("logit_scale", [1.0, 10.0])
def test_bfloat16_products_stay_within_their_rounding(logit_scale):
    x, weight, targets = make_case(rows=4, tokens=64, vocab=333, logit_scale=logit_scale)
    x, weight = x.bfloat16().float(), weight.bfloat16().float()
    losses, dx, dweight = reference(x, weight, targets)
    ours = run(x, weight, targets, dtype=torch.bfloat16, chunk_rows=32)
    assert ours[0].item() == pytest.approx(losses.sum().item(), rel=5e-3)
    assert ours[1].dtype is torch.float32
    assert ours[2].dtype is torch.float32
    assert_near(ours[1], dx, 2e-2)
    assert_near(ours[2], dweight, 2e-2)


def test_the_cap_is_computed_in_float32():
    # Logits of exactly 40 and -40 are representable in bfloat16; the cap's result is not (14.858...).
    x = torch.tensor([[[1.0]]])
    weight = torch.tensor([[40.0], [-40.0], [12.0]])
    targets = torch.tensor([[2]])
    loss = token_losses(x, weight, targets, softcap=15.0, compute_dtype=torch.bfloat16).item()
    capped = [15 * math.tanh(z / 15) for z in (40.0, -40.0, 12.0)]
    by_hand = math.log(sum(math.exp(c) for c in capped)) - capped[2]
    assert loss == pytest.approx(by_hand, abs=1e-5)
    in_bfloat16 = (15 * torch.tanh(torch.tensor([40.0, -40.0, 12.0]).bfloat16() / 15)).float()
    assert abs((in_bfloat16.logsumexp(0) - in_bfloat16[2]).item() - by_hand) > 1e-3


@pytest.mark.parametrize("softcap", [15.0, 0.0])
def test_huge_logits_give_finite_losses_and_gradients(softcap):
    x, weight, targets = make_case(logit_scale=1e4)
    for tensor in run(x, weight, targets, softcap=softcap):
        assert torch.isfinite(tensor).all()
    losses, dx, _ = reference(x, weight, targets, softcap=softcap)
    ours = run(x, weight, targets, softcap=softcap)
    assert ours[0].item() == pytest.approx(losses.sum().item(), rel=1e-5)
    # The product itself rounds logits of 4e4 to steps of 0.004 before the cap sees them.
    assert (ours[1].double() - dx).abs().max() < 1e-3 * max(1.0, dx.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_rows", [1, 7, None])
def test_logits_of_200_without_a_cap_equal_float64(dtype, chunk_rows):
    """exp(200) is infinite in float32: the largest logit must be taken out first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(12).repeat(2, 1, 1)
    # Logits are the columns themselves: multiples of 8 to +-200, exact in bfloat16.
    weight = torch.randint(-24, 25, (40, 12), generator=generator) * 8.0
    weight[0, :6], weight[1, :6], weight[:, 7] = 200.0, -200.0, -200.0
    targets = torch.randint(0, 40, (2, 12), generator=generator)
    targets[0, :3] = torch.tensor([0, 1, 0])
    losses, dx, dweight = reference(x, weight, targets, softcap=0.0)
    assert losses.max() >= 400 > 0.01 > losses.min()
    ours = run(x, weight, targets, softcap=0.0, dtype=dtype, chunk_rows=chunk_rows)
    per_token = token_losses(x, weight, targets, softcap=0.0, compute_dtype=dtype, chunk_rows=chunk_rows)
    # 1.5e-5 is the distance of neighbouring float32 numbers at 200.
    assert torch.allclose(per_token.double(), losses, rtol=1e-6, atol=2e-5)
    assert ours[0].item() == pytest.approx(losses.sum().item(), rel=1e-6)
    tolerance = 3e-6 if dtype is torch.float32 else 5e-3
    assert_near(ours[1], dx, tolerance)
    assert_near(ours[2], dweight, tolerance)


def test_loss_of_equal_logits_is_log_of_the_vocabulary():
    x, weight, targets = make_case(vocab=321)
    loss, _, _ = run(torch.zeros_like(x), weight, targets)
    assert loss.item() / targets.numel() == pytest.approx(math.log(321), rel=1e-6)


def test_token_losses_equal_float64_per_token():
    x, weight, targets = make_case()
    targets[1, 3] = IGNORE
    losses, _, _ = reference(x, weight, targets)
    ours = token_losses(x, weight, targets, softcap=15.0, compute_dtype=torch.float32, chunk_rows=8)
    assert ours.shape == targets.shape
    assert ours.dtype is torch.float32
    assert torch.allclose(ours.double(), losses, atol=1e-5)
    assert ours[1, 3] == 0
    assert not ours.requires_grad


def test_without_gradients_the_sum_is_the_same():
    x, weight, targets = make_case()
    weight = weight.requires_grad_()
    with torch.no_grad():
        loss = summed_cross_entropy(x, weight, targets, softcap=15.0, compute_dtype=torch.float32)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(run(x, weight.detach(), targets)[0].item(), rel=1e-6)


def test_noncontiguous_inputs_and_targets_are_accepted():
    x, weight, targets = make_case(tokens=18)
    expected = run(x[:, :-1].contiguous(), weight, targets[:, :-1].contiguous())
    ours = run(x[:, :-1], weight, targets[:, :-1])
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [50, 70, -2, -100])
def test_a_target_outside_the_vocabulary_is_named(wrong):
    x, weight, targets = make_case()
    targets[1, 1] = wrong
    with pytest.raises(DataError, match=f"target {wrong} .* 50 ids"):
        run(x, weight, targets)
    with pytest.raises(DataError, match=f"target {wrong} "):
        token_losses(x, weight, targets, softcap=15.0, compute_dtype=torch.float32)


def test_nan_is_passed_on_and_not_hidden():
    x, weight, targets = make_case()
    x[1, 2, 3] = math.nan
    assert math.isnan(run(x, weight, targets)[0].item())


def test_same_inputs_give_the_same_bits():
    x, weight, targets = make_case()
    for a, b in zip(run(x, weight, targets), run(x, weight, targets), strict=True):
        assert torch.equal(a, b)


class LargestTensor(TorchDispatchMode):
    """Watches every operation and keeps the largest number of elements in any result."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_ever_has_the_size_of_the_batchs_logits(dtype):
    x, weight, targets = make_case(rows=4, tokens=256, width=8, vocab=512)
    with LargestTensor() as watch:
        run(x, weight, targets, dtype=dtype, chunk_rows=64)
        token_losses(x, weight, targets, softcap=15.0, compute_dtype=dtype, chunk_rows=64)
    assert watch.num_elements == 64 * 512
    assert 16 * watch.num_elements == 1024 * 512


def test_default_chunks_stay_within_their_bytes():
    assert default_chunk_rows(8192) * 8192 * 4 == 24 * 2**20
    assert default_chunk_rows(32768) * 32768 * 4 == 24 * 2**20
    assert default_chunk_rows(10**6) == 128


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("dtype", "softcap"), [(torch.float32, 0.0), (torch.bfloat16, 15.0)])
def test_compiled_equals_eager(dtype, softcap):
    x, weight, targets = make_case(rows=2, tokens=48, vocab=300)
    targets[0, 0] = IGNORE
    options = {"softcap": softcap, "dtype": dtype, "chunk_rows": 40}
    eager = run(x, weight, targets, **options)
    compiled = run(x, weight, targets, **options, compiled=True)
    tolerance = 1e-6 if dtype is torch.float32 else 5e-3
    for a, b in zip(compiled, eager, strict=True):
        assert_near(a, b, tolerance)
    per_token = token_losses(x, weight, targets, softcap=softcap, compute_dtype=dtype, chunk_rows=40, compiled=True)
    assert_near(per_token.sum(), eager[0], tolerance)
