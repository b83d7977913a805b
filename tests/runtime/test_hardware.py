"""Peaks and memory figures: the table finds the right card, the measurement is a rate, memory is in bytes."""

from __future__ import annotations

import mmap
import types

import pytest
import torch

from firstlight.runtime import hardware
from firstlight.runtime.hardware import GPU_PEAKS, device_peak, measure_peak, peak_of_gpu, peak_rss_bytes, rss_bytes

CPU = torch.device("cpu")

# Names as drivers report them, with dense half-precision figures of the data sheets.
REPORTED = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla T4": 65e12,
    "AMD Instinct MI300X": 1307.4e12,
    "AMD Instinct MI250X/MI250": 191.5e12,
}


@pytest.mark.parametrize(("name", "flops_per_s"), REPORTED.items())
def test_a_known_gpu_has_its_data_sheets_peak(name, flops_per_s):
    peak = peak_of_gpu(name)
    assert peak is not None
    assert peak.flops_per_s == flops_per_s
    assert peak.source


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GB10",
        "Some GPU of 2031",
    ],
)
def test_a_gpu_that_only_shares_a_name_is_not_in_the_table(name):
    assert peak_of_gpu(name) is None


def test_every_row_of_the_table_has_a_plausible_rate_and_a_source():
    for pattern, flops_per_s, source in GPU_PEAKS:
        assert 20e12 < flops_per_s < 10e15, pattern
        assert len(source) > 5, pattern


def test_an_unknown_gpu_and_float32_are_measured(monkeypatch):
    monkeypatch.setattr(hardware, "measure_peak", lambda device, dtype, seconds: "measured")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    cuda = types.SimpleNamespace(type="cuda")
    assert device_peak(cuda, torch.bfloat16).flops_per_s == 989.4e12
    assert device_peak(cuda, torch.float32) == "measured"
    assert device_peak(torch.device("mps"), torch.bfloat16) == "measured"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GB10")
    assert device_peak(cuda, torch.bfloat16) == "measured"


def test_the_measured_peak_is_the_best_rate_by_hand(monkeypatch):
    # A clock that moves 1 ms at each look: every matmul takes 1 ms, so the largest shape gives the best rate.
    now_s = iter(i * 1e-3 for i in range(10**6))
    monkeypatch.setattr(hardware, "time", types.SimpleNamespace(perf_counter=lambda: next(now_s)))
    monkeypatch.setattr(hardware.torch, "mm", lambda a, b, out=None: out)
    peak = measure_peak(CPU, torch.float32, seconds=0.04)
    assert peak.flops_per_s == pytest.approx(2 * 2048**3 / 1e-3)
    assert "2048x2048x2048" in peak.source
    assert "float32" in peak.source
    assert "measured" in peak.source


def test_measuring_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    measure_peak(CPU, torch.float32, seconds=0.01)
    assert torch.equal(before, torch.get_rng_state())


def test_memory_of_the_process_grows_by_what_is_allocated():
    before = rss_bytes()
    if before is None:
        pytest.skip("this system does not tell the present memory of a process")
    # A mapping of its own: an array may get memory that an earlier test freed and that the process still holds.
    with mmap.mmap(-1, 50_000_000) as block:
        block.write(b"x" * 50_000_000)
        assert 40e6 < rss_bytes() - before < 180e6
        assert peak_rss_bytes() >= before + 40e6


def test_a_cpu_has_no_device_memory_and_is_described_by_plain_values():
    assert hardware.device_memory(CPU) is None
    facts = hardware.describe(CPU, num_threads=3)
    assert facts["num_threads"] == 3
    assert facts["cpu"]
    assert facts["memory_bytes"] is None or facts["memory_bytes"] > 1e8
