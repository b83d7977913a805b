"""The dtype of matmuls follows what the hardware is really fast at, and says why."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.runtime import precision
from firstlight.runtime.precision import choose_dtype

CPU, MPS, CUDA = torch.device("cpu"), torch.device("mps"), torch.device("cuda", 0)


def pretend_gpu(monkeypatch, capability, name="a GPU"):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


@pytest.mark.parametrize(("bf16", "chosen"), [(3e11, torch.bfloat16), (1.2e11, torch.float32), (1e10, torch.float32)])
def test_a_cpu_uses_bf16_only_where_it_is_measured_to_be_faster(monkeypatch, bf16, chosen):
    rates = {torch.float32: 1e11, torch.bfloat16: bf16}
    monkeypatch.setattr(precision, "matmul_flops_per_s", lambda device, dtype, *, seconds: rates[dtype])
    dtype, why = choose_dtype(CPU, "auto")
    assert dtype == chosen
    assert f"{bf16 / 1e9:.0f} GFLOP/s in bf16 and 100 in fp32" in why


def test_one_disturbed_measurement_does_not_decide_the_dtype(monkeypatch):
    turns = iter([1e11, 1e10, 1e11, 3e11, 1e11, 1e10, 1e11, 1e10])
    monkeypatch.setattr(precision, "matmul_flops_per_s", lambda device, dtype, *, seconds: next(turns))
    assert choose_dtype(CPU, "auto")[0] == torch.bfloat16


def test_the_probe_runs_on_one_core_and_gives_the_threads_back(monkeypatch):
    seen = []

    def rate(device, dtype, *, seconds):
        seen.append(torch.get_num_threads())
        return 1e11

    monkeypatch.setattr(precision, "matmul_flops_per_s", rate)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        choose_dtype(CPU, "auto")
        assert torch.get_num_threads() == 2
        assert precision.expected_flops_per_s(CPU, torch.float32) == 2e11
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_a_gpu_without_bf16_gets_fp16_and_a_newer_one_bf16(monkeypatch):
    pretend_gpu(monkeypatch, (7, 0))
    assert choose_dtype(CUDA, "auto")[0] == torch.float16
    assert "scaler" in choose_dtype(CUDA, "auto")[1]
    pretend_gpu(monkeypatch, (8, 0))
    assert choose_dtype(CUDA, "auto")[0] == torch.bfloat16


def test_bf16_asked_of_a_gpu_without_it_is_refused_by_name(monkeypatch):
    pretend_gpu(monkeypatch, (7, 5), "Tesla T4")
    with pytest.raises(ConfigError, match="Tesla T4"):
        choose_dtype(CUDA, "bf16")


def test_an_apple_gpu_is_its_own_device_neither_cpu_nor_cuda(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: pytest.fail("asked CUDA about an Apple GPU")
    )
    monkeypatch.setattr(
        precision, "matmul_flops_per_s", lambda device, dtype: pytest.fail("probed as if it were a CPU")
    )
    assert choose_dtype(MPS, "auto")[0] == torch.float32
    assert choose_dtype(MPS, "bf16")[0] == torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_asked_for_is_used_without_a_probe(monkeypatch, name, dtype):
    monkeypatch.setattr(precision, "matmul_flops_per_s", lambda device, dtype: pytest.fail("probed"))
    assert choose_dtype(CPU, name) == (dtype, f"dtype {name}: asked for")


def test_fp16_on_a_cpu_and_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"fp16(.|\n)*bf16"):
        choose_dtype(CPU, "fp16")
    with pytest.raises(ConfigError, match=r"float8(.|\n)*auto, fp32, bf16, fp16"):
        choose_dtype(CPU, "float8")


def test_the_probe_is_a_rate_and_short():
    rate = precision.matmul_flops_per_s(CPU, torch.float32, size=128, seconds=0.01)
    assert 1e7 < rate < 1e14


def test_the_probe_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    precision.matmul_flops_per_s(CPU, torch.float32, size=8, seconds=0.0)
    assert torch.equal(before, torch.get_rng_state())
