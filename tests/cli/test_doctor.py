"""`doctor`: each thing in the way is found, explained, and comes with what to do."""

from __future__ import annotations

import json

import pytest

from firstlight.cli import doctor as doctor_module
from firstlight.cli.doctor import doctor, findings

GIB = 2**30

GOOD = {
    "device": "cpu", "gpus": [], "gpu_peak_flops_per_s": None, "num_usable_cpus": 8, "num_threads": 8,
    "matmul_flops_per_s": {"fp32": 4e11, "bf16": 8e11}, "memory_bytes": 32 * GIB, "memory_free_bytes": 20 * GIB,
    "compiler": "/usr/bin/g++", "compiler_problem": None, "native_problems": {}, "runs_dir": "runs", "runs_free_bytes": 90 * GIB, "runs_writable": True,
    "cache_dir": "/c", "cache_free_bytes": 90 * GIB, "cache_writable": True, "driver": None, "driver_cuda": None,
    "torch_cuda": None, "torch_hip": None, "versions": {"torch": "2.13.0"},
}  # fmt: skip
ON_GPU = GOOD | {
    "device": "cuda:0", "gpus": ["NVIDIA H100 80GB HBM3"], "gpu_peak_flops_per_s": 989e12, "driver": "590.1", "driver_cuda": "13.1",
    "torch_cuda": "13.0", "matmul_flops_per_s": {"fp32": 5e13, "bf16": 7e14},
}  # fmt: skip


def test_a_good_machine_has_nothing_in_the_way():
    assert findings(ON_GPU) == []
    assert [finding.level for finding in findings(GOOD)] == ["note"]  # no GPU


@pytest.mark.parametrize(
    ("changes", "level", "what", "do"),
    [
        ({"compiler": None}, "slow", "no C++ compiler", "g++"),
        ({"compiler_problem": "omp.h: No such file"}, "slow", "omp.h", "--compile off"),
        (
            {"native_problems": {"decoding": "FIRSTLIGHT_NATIVE is 0", "loss": "FIRSTLIGHT_NATIVE is 0"}},
            "slow",
            "none for decoding, loss: FIRSTLIGHT_NATIVE is 0",
            "docs/decoding.md",
        ),
        ({"num_threads": 2}, "slow", "2 of 8 CPUs", "OMP_NUM_THREADS"),
        ({"matmul_flops_per_s": {"fp32": 4e11, "bf16": 1e11}}, "note", "no faster in bf16", "nothing to do"),
        ({"runs_free_bytes": GIB // 2}, "error", "0.5 GiB free", "FIRSTLIGHT_RUNS"),
        ({"cache_writable": False}, "error", "cannot be written", "FIRSTLIGHT_CACHE"),
        ({"memory_bytes": 3 * GIB}, "note", "3.0 GiB of memory", "--depth 4"),
        ({"memory_free_bytes": GIB}, "note", "only 1.0 GiB", "close other programs"),
        ({"versions": {"rustbpe": "not installed"}}, "error", "rustbpe", "pip install"),
        ({"driver": "590.1", "driver_cuda": "13.1"}, "slow", "build for CPUs only", "CUDA build"),
        (
            {"driver": "535.1", "driver_cuda": "12.2", "torch_cuda": "13.0"},
            "slow",
            "535.1 knows CUDA up to 12.2",
            "update the driver",
        ),
        (
            {"driver": "590.1", "driver_cuda": "13.1", "torch_cuda": "13.0"},
            "slow",
            "torch does not see it",
            "CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_each_thing_in_the_way_is_found_with_what_to_do(changes, level, what, do):
    matching = [finding for finding in findings(GOOD | changes) if what in finding.what]
    assert len(matching) == 1, findings(GOOD | changes)
    assert matching[0].level == level
    assert do in matching[0].do


@pytest.mark.parametrize(("driver_cuda", "torch_cuda", "is_too_old"), [("13.0", "13.1", False), ("9.2", "13.0", True)])
def test_a_driver_is_too_old_by_its_major_version_as_a_number(driver_cuda, torch_cuda, is_too_old):
    facts = GOOD | {"driver": "600.1", "driver_cuda": driver_cuda, "torch_cuda": torch_cuda}
    assert any("knows CUDA" in finding.what for finding in findings(facts)) == is_too_old


def test_a_gpu_far_below_its_data_sheet_is_pointed_out():
    slow = ON_GPU | {"matmul_flops_per_s": {"fp32": 5e13, "bf16": 1e14}}
    assert [finding.level for finding in findings(slow)] == ["slow"]
    assert "nvidia-smi" in findings(slow)[0].do


def test_the_worst_comes_first():
    levels = [finding.level for finding in findings(GOOD | {"compiler": None, "runs_writable": False})]
    assert levels == ["error", "slow", "note"]


def test_the_real_machine_is_described_in_json_and_for_people(capsys, monkeypatch):
    facts = doctor_module.gather(threads=1)
    monkeypatch.setattr(doctor_module, "gather", lambda threads: facts)
    doctor(json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["matmul_flops_per_s"]["fp32"] > 1e8
    assert found["num_threads"] == 1
    assert all(set(finding) == {"level", "what", "do"} for finding in found["findings"])
    doctor()
    text = capsys.readouterr().out
    for expected in ("device", "matmul", "GFLOP/s", "compiler", "native", "memory", "versions"):
        assert expected in text


def test_a_compiler_that_cannot_link_is_told_from_one_that_can(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: vector: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "fatal error: vector" in doctor_module._compiler_problem(str(broken))
    assert "No such file" in doctor_module._compiler_problem(str(tmp_path / "none"))


def test_disk_and_permission_are_those_of_the_nearest_folder_that_exists(tmp_path):
    deep = tmp_path / "not" / "yet" / "there"
    assert doctor_module._disk_free_bytes(deep) > 0
    assert doctor_module._is_writable(deep)
    (tmp_path / "file").write_text("x")
    assert not doctor_module._is_writable(tmp_path / "file" / "runs")
    assert not deep.exists()
