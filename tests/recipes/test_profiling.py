"""`--profile`: kinds by the names of callers, times that add up, files in the run's folder, and a run that is not changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from firstlight.recipes import base, profiling
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.metrics import read_metrics

TINY = BaseSettings(
    depth=1, vocab_size=320, max_seq_len=32, total_batch_size=128, num_iterations=9, dtype="fp32", device="cpu", compile="off",
    threads=1, workers=0, val="last", save_every=0, eval_every=6, sample_every=0,
)  # fmt: skip


@dataclass
class Range:
    start: float
    end: float

    def elapsed_us(self) -> float:
        return self.end - self.start


@dataclass
class Event:
    name: str
    time_range: Range
    self_cpu_time_total: float = 0.0
    self_device_time_total: float = 0.0
    cpu_parent: Event | None = None
    device_type: torch.autograd.DeviceType = torch.autograd.DeviceType.CPU


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::mm", "aten::linear"], profiling.MATRICES),
        (["aten::addmm", "_SummedCrossEntropy"], profiling.MATRICES),
        (["mkldnn::_linear_pointwise", "CompiledFunction"], profiling.MATRICES),
        (["aten::bmm", "aten::matmul", "BlockedAttention"], profiling.ATTENTION),
        (["aten::_scaled_dot_product_flash_attention_for_cpu"], profiling.ATTENTION),
        (["aten::copy_", "aten::_to_copy", "aten::to"], profiling.COPIES),
        (["aten::copy_", "_SummedCrossEntropy"], profiling.LOSS_KERNEL),
        (["## Call CompiledFxGraph abc", "Torch-Compiled Region: 1/0", "_SummedCrossEntropy"], profiling.LOSS_KERNEL),
        (["## Call CompiledFxGraph abc", "CompiledFunctionBackward"], profiling.COMPILED),
        (["aten::bmm", "firstlight optimizer"], profiling.OPTIMIZER_KIND),
        (["aten::copy_", "firstlight optimizer"], profiling.OPTIMIZER_KIND),
        (["aten::mul", "aten::rms_norm"], profiling.OTHER),
    ],
)
def test_kind_of_an_operator(names, kind):
    assert profiling.kind_of([*names, profiling.STEP]) == kind


def test_times_add_up_to_the_steps_and_what_is_outside_does_not_count():
    first, second = Event(profiling.STEP, Range(0, 100)), Event(profiling.STEP, Range(200, 260))
    optimizer = Event(profiling.OPTIMIZER, Range(60, 90), 5.0, cpu_parent=first)
    events = [
        first, second, optimizer,
        Event("aten::mm", Range(10, 50), 40.0, 3.0, first),
        Event("aten::bmm", Range(65, 85), 20.0, 7.0, optimizer),
        Event("aten::mm", Range(210, 225), 15.0, 2.0),
        Event("aten::mm", Range(120, 150), 30.0, 9.0),
        Event("kernel", Range(10, 50), 40.0, 3.0, device_type=torch.autograd.DeviceType.CUDA),
    ]  # fmt: skip
    times_us, whole_us = profiling.times_by_kind(events, on_gpu=False)
    assert whole_us == 160
    wanted = {profiling.MATRICES: 55.0, profiling.OPTIMIZER_KIND: 25.0, profiling.BETWEEN: 80.0}
    assert {kind: time for kind, time in times_us.items() if time} == wanted
    times_us, _ = profiling.times_by_kind(events, on_gpu=True)
    wanted = {profiling.MATRICES: 5.0, profiling.OPTIMIZER_KIND: 7.0, profiling.BETWEEN: 148.0}
    assert {kind: time for kind, time in times_us.items() if time} == wanted


def test_a_table_is_of_one_step_and_largest_first():
    _, rows = profiling.table_of({"a": 1000.0, "b": 3000.0, "c": 0.0}, 4000.0, num_steps=2)
    assert rows == [["b", "1.50", "75.0%"], ["a", "0.50", "25.0%"], ["step", "2.00", "100.0%"]]


def losses_of(run_dir: Path) -> list[float]:
    return [row["loss_nats"] for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "train"]


def test_a_profiled_run_leaves_both_files_and_trains_the_same(tiny_corpus, own_folders, capsys):
    settings = replace(TINY, data=str(tiny_corpus))
    base.train_base(replace(settings, run="plain"))
    base.train_base(replace(settings, run="noted", profile=True))
    assert not (own_folders / "plain" / "profile").exists()
    text = (own_folders / "noted" / "profile" / "table.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    for kind in (profiling.MATRICES, profiling.ATTENTION, profiling.LOSS_KERNEL, profiling.OPTIMIZER_KIND):
        assert kind in text
    trace = json.loads((own_folders / "noted" / "profile" / "trace.json").read_text())
    # The validation at step 6 lies between the profiled steps 5, 6 and 7.
    assert sum(event.get("name") == profiling.STEP for event in trace["traceEvents"]) == profiling.NUM_STEPS
    assert losses_of(own_folders / "plain") == losses_of(own_folders / "noted")
    assert len(losses_of(own_folders / "noted")) == 9


def test_a_run_that_ends_too_soon_says_so(tiny_corpus, own_folders, capsys):
    base.train_base(replace(TINY, data=str(tiny_corpus), run="short", num_iterations=3, profile=True))
    assert "ended before step 6" in capsys.readouterr().err
    assert not (own_folders / "short" / "profile").exists()


def test_a_run_that_ends_while_it_is_profiled_keeps_what_there_is(tiny_corpus, own_folders):
    base.train_base(replace(TINY, data=str(tiny_corpus), run="cut", num_iterations=6, profile=True))
    assert "1 steps, profiled after 5" in (own_folders / "cut" / "profile" / "table.txt").read_text()


def test_a_profile_that_cannot_be_written_is_a_warning(tiny_corpus, own_folders, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(profiling.profile, "export_chrome_trace", full)
    record = base.train_base(replace(TINY, data=str(tiny_corpus), run="full", profile=True))
    assert record.status == "done"
    assert "no space left" in capsys.readouterr().err
