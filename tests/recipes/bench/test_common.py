"""Turns, medians, made-up batches and the form of a report."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.recipes.bench import common


def test_a_timing_is_described_by_median_and_quartiles() -> None:
    timing = common.Timing((0.005, 0.001, 0.003, 0.002, 0.004))
    assert timing.median_s == 0.003
    assert timing.quartiles_s == (0.002, 0.004)
    assert timing.describe_ms() == "3.00 ms (2.00 to 4.00)"
    assert common.Timing((0.5,)).quartiles_s == (0.5, 0.5)


def test_functions_take_turns_after_one_call_each_that_does_not_count(cpu) -> None:
    called = []
    times = common.take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=3, runtime=cpu)
    assert called == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert {name: len(timing.times_s) for name, timing in times.items()} == {"a": 3, "b": 3}


def test_the_collector_is_back_after_an_error() -> None:
    assert gc.isenabled()

    def fails() -> None:
        with common.steady_clock():
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gc.isenabled()


def test_the_plan_has_the_asked_shape(tiny_options) -> None:
    plan = common.bench_plan(tiny_options)
    assert (plan.model.vocab_size, plan.seq_len, plan.device_batch_size) == (96, 33, 2)
    assert (plan.total_batch_size, plan.num_micro_batches) == (66, 1)
    twice = common.bench_plan(replace(tiny_options, total_batch_size=132))
    assert (twice.total_batch_size, twice.num_micro_batches) == (132, 2)
    from_depth = common.bench_plan(replace(tiny_options, max_seq_len=None))
    assert from_depth.total_batch_size == 2 * from_depth.seq_len
    with pytest.raises(ConfigError, match="--rounds 0"):
        common.bench_plan(replace(tiny_options, rounds=0))
    with pytest.raises(ConfigError, match="--threads 0"):
        common.bench_plan(replace(tiny_options, threads=0))
    with pytest.raises(ConfigError, match="--vocab-size 1"):
        common.bench_plan(replace(tiny_options, vocab_size=1))


def test_auto_compiles_as_a_long_run_does(tiny_options, cpu, monkeypatch) -> None:
    plan = common.bench_plan(tiny_options)
    monkeypatch.setattr(common.environment, "cxx_compiler", lambda: "/usr/bin/g++")
    for is_native in (True, False):
        monkeypatch.setattr(common, "has_native_layers", lambda is_native=is_native, **_: is_native)
        assert common.compile_choice(replace(tiny_options, compile="auto"), plan, cpu)[0] is not is_native
    assert common.compile_choice(tiny_options, plan, cpu)[0] is False
    monkeypatch.setattr(common.environment, "cxx_compiler", lambda: None)
    assert common.compile_choice(replace(tiny_options, compile="auto"), plan, cpu)[0] is False


def test_made_up_batches_are_whole_different_and_repeatable(tiny_options, cpu) -> None:
    plan = common.bench_plan(tiny_options)
    first, second = common.random_batches(plan, cpu, num=2, seed=3)
    assert first.inputs_BT.shape == first.targets_BT.shape == (2, 33)
    assert torch.equal(first.inputs_BT[:, 1:], first.targets_BT[:, :-1])
    assert not torch.equal(first.inputs_BT, second.inputs_BT)
    assert 0 <= int(first.targets_BT.min()) <= int(first.targets_BT.max()) < 96
    assert torch.equal(common.random_batches(plan, cpu, num=2, seed=3)[1].inputs_BT, second.inputs_BT)


def test_peaks_are_positive_and_described(cpu) -> None:
    found = common.peaks(cpu)
    assert found["gemm_peak_flops"] > 0
    assert found["copy_bytes_per_s"] > 0
    assert "gemm_peak_flops_fp32" not in found
    assert common.describe_peaks(found).startswith("peaks of this machine (cpu, ")


def test_a_report_is_plain_values() -> None:
    report = common.Report("x", "title", figures={"a": 1.5}, notes=["n"])
    report.line("what", "value")
    assert report.to_dict() == {"benchmark": "x", "title": "title", "a": 1.5, "notes": ["n"]}
    assert report.lines == [("what", "value", "")]
