"""Claims about the native loss kernels: losses and gradients are those of float64 autograd at odd sizes, in float32 and bf16, for
any cap; the number of threads changes nothing; damage is not hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from firstlight.train.loss import LARGEST_UNSHIFTED_CAP
from firstlight.train.native import loss
from firstlight.train.native.loss import native_loss, native_loss_and_grad_, why_not_native_loss


@pytest.fixture(autouse=True)
def _native() -> None:
    if (reason := why_not_native_loss(device_type="cpu", dtype=torch.float32)) is not None:
        pytest.skip(f"no native loss: {reason}")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case(R: int, V: int, *, dtype: torch.dtype, scale: float = 5.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_RV = (scale * torch.randn(R, V, generator=generator)).to(dtype)
    targets_R = torch.randint(-1, V, (R,), generator=generator)
    return z_RV, targets_R, torch.rand(R, generator=generator) * (targets_R >= 0)


def expected_of(z_RV, targets_R, weights_R, softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
    z_RV = z_RV.double().requires_grad_()
    c_RV = softcap * torch.tanh(z_RV / softcap) if softcap else z_RV
    losses_R = torch.nn.functional.cross_entropy(c_RV, targets_R.clamp_min(0), reduction="none") * weights_R.double()
    return losses_R.detach(), torch.autograd.grad(losses_R.sum(), z_RV)[0]


@pytest.mark.parametrize("softcap", [15.0, 2.5, 60.0, 0.0])
@pytest.mark.parametrize(("R", "V"), [(1, 1), (3, 15), (5, 16), (2, 127), (4, 128), (3, 513), (2, 4099)])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_losses_and_gradients_are_those_of_float64(R, V, softcap, dtype, relative) -> None:
    z_RV, targets_R, weights_R = case(R, V, dtype=dtype)
    losses_R, dz_RV = expected_of(z_RV, targets_R, weights_R, softcap)
    assert (native_loss(z_RV, targets_R, weights_R, softcap) - losses_R).abs().max() < 1e-5
    ours_RV = z_RV.clone()
    assert (native_loss_and_grad_(ours_RV, targets_R, weights_R, softcap) - losses_R).abs().max() < 1e-5
    assert ours_RV.dtype == dtype
    # bf16: each number is rounded once, to 8 bits. A capped logit has an error of a few 1e-8 of its cap.
    assert ((ours_RV - dz_RV).abs() <= (relative + 2e-7 * softcap) * dz_RV.abs() + 3e-7).all()


def test_the_target_may_be_all_but_certain() -> None:
    # p - 1 is about -1e-6: in bf16 the difference of rounded numbers would be 0.
    z_RV = torch.tensor([[13.8, 0.0, 0.0]], dtype=torch.bfloat16)
    targets_R, weights_R = torch.tensor([0]), torch.ones(1)
    _, dz_RV = expected_of(z_RV, targets_R, weights_R, 0.0)
    native_loss_and_grad_(z_RV, targets_R, weights_R, 0.0)
    assert (z_RV - dz_RV).abs().max() < 2e-7
    assert z_RV[0, 0] < -1e-6


@pytest.mark.parametrize("softcap", [15.0, 0.0])
def test_extreme_logits(softcap: float) -> None:
    z_RV = torch.tensor([[1e4, -1e4, 0.0], [-1e30, 1e30, 3.0], [88.0, 89.0, 90.0]])
    targets_R, weights_R = torch.tensor([1, 1, 0]), torch.ones(3)
    losses_R, dz_RV = expected_of(z_RV, targets_R, weights_R, softcap)
    found_R = native_loss_and_grad_(z_RV, targets_R, weights_R, softcap)
    assert ((found_R - losses_R).abs() <= 1e-6 * losses_R.abs() + 1e-6).all()
    assert (z_RV - dz_RV).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [15.0, 0.0])
def test_a_damaged_logit_is_seen_in_its_row_alone(dtype: torch.dtype, softcap: float) -> None:
    z_RV, targets_R, weights_R = case(3, 300, dtype=dtype)
    whole_RV = z_RV.clone()
    whole_R = native_loss_and_grad_(whole_RV, targets_R, weights_R, softcap)
    z_RV[1, 17] = float("nan")
    found_R = native_loss_and_grad_(z_RV, targets_R, weights_R, softcap)
    assert found_R[1].isnan()
    assert z_RV[1].isnan().all()
    assert torch.equal(found_R[[0, 2]], whole_R[[0, 2]])
    assert torch.equal(z_RV[[0, 2]], whole_RV[[0, 2]])


def test_the_number_of_threads_changes_nothing(threads: None) -> None:
    z_RV, targets_R, weights_R = case(11, 1000, dtype=torch.float32)
    found = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        ours_RV = z_RV.clone()
        found.append((native_loss_and_grad_(ours_RV, targets_R, weights_R, 15.0), ours_RV))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_rows_may_lie_apart() -> None:
    z_RV, targets_R, weights_R = case(4, 100, dtype=torch.float32)
    wide = torch.full((4, 150), 7.0)
    wide[:, :100] = z_RV
    losses_R = native_loss_and_grad_(wide[:, :100], targets_R, weights_R, 15.0)
    assert torch.equal(losses_R, native_loss_and_grad_(z_RV, targets_R, weights_R, 15.0))
    assert torch.equal(wide[:, :100], z_RV)
    assert (wide[:, 100:] == 7.0).all()


def test_where_it_is_not() -> None:
    assert "not cuda" in str(why_not_native_loss(device_type="cuda", dtype=torch.float32))
    assert "not torch.float16" in str(why_not_native_loss(device_type="cpu", dtype=torch.float16))


def test_what_does_not_belong_together_is_refused() -> None:
    z_RV, targets_R, weights_R = case(3, 20, dtype=torch.float32)
    for arguments, words in (
        ((z_RV, torch.tensor([0, 20, 1]), weights_R), "target 20 is none of 20 ids"),
        ((z_RV, targets_R[:2], weights_R), "3 rows"),
        ((z_RV.T, torch.zeros(20, dtype=torch.int64), torch.ones(20)), "20 rows"),
        ((z_RV, targets_R.int(), weights_R), "int32"),
        ((z_RV.half(), targets_R, weights_R), "float16"),
    ):
        with pytest.raises(ValueError, match=words):
            native_loss_and_grad_(*arguments, 15.0)


def test_the_largest_cap_without_a_shift_is_that_of_its_oracle() -> None:
    (cap,) = re.findall(r"LARGEST_UNSHIFTED_CAP = (\d+);", loss.SOURCE.read_text())
    assert float(cap) == LARGEST_UNSHIFTED_CAP
