"""The optimizer's products against torch's own count of the real orthogonalization."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from firstlight.model.config import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim import muon
from firstlight.optim.gemms import optimizer_gemms, orthogonalize_gemms
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime
from firstlight.runtime.gemm_bench import total_flops


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64), (1, 96, 16), (2, 33, 40), (1, 1, 5)])
@pytest.mark.parametrize("coefficients", [muon.POLAR_EXPRESS, muon.POLAR_EXPRESS_4, muon.CLASSIC_QUINTIC])
@pytest.mark.parametrize("safety", [True, False])
def test_the_list_has_the_flops_that_torch_counts(
    shape: tuple[int, int, int], coefficients: muon.Coefficients, safety: bool
) -> None:
    updates = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        muon.orthogonalize(updates, dtype=torch.float32, coefficients=coefficients, safety=safety)
    gemms = orthogonalize_gemms(*shape, dtype=torch.float32, coefficients=coefficients, safety=safety)
    assert total_flops(gemms) == counter.get_total_flops()


@pytest.mark.parametrize("coefficients", [muon.POLAR_EXPRESS, muon.POLAR_EXPRESS_4])
def test_a_whole_step_of_the_optimizer(coefficients: muon.Coefficients) -> None:
    config = GPTConfig(vocab_size=50, n_layer=3, n_head=2, n_kv_head=1, n_embd=32, max_seq_len=16)
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=0)
    groups = make_groups(model.named_parameters())
    optimizer = MuonAdamW(groups, Runtime(torch.device("cpu")), muon_coefficients=coefficients)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step(Hyper())
    gemms = optimizer_gemms(groups, dtype=torch.float32, coefficients=coefficients)
    assert total_flops(gemms) == counter.get_total_flops() > 0
    assert {gemm.kind for gemm in gemms} == {"optimizer"}


def test_one_shape_by_hand() -> None:
    """Two matrices (32,8) and five polynomials in cycles of 2, 2 and 1: the first two in Gram form, the last direct."""
    gemms = orthogonalize_gemms(2, 32, 8, dtype=torch.bfloat16, coefficients=muon.POLAR_EXPRESS, safety=True)
    squares = (2 + 3) + (2 + 3) + 1
    by_hand = 2 * 2 * (3 * 8 * 8 * 32 + squares * 8**3 + 3 * 8 * 8 * 32)
    assert total_flops(gemms) == by_hand == 71_680
