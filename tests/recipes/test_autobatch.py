"""The largest micro-batch that fits: the search without memory, the measuring with some, and nothing trained changes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from firstlight.errors import ConfigError
from firstlight.model import count
from firstlight.recipes import autobatch
from firstlight.recipes.assemble import assemble
from firstlight.recipes.autobatch import (
    CpuMeter,
    GpuMeter,
    divisors,
    find_device_batch,
    largest_that_fits,
    with_device_batch,
)
from firstlight.runtime import hardware
from firstlight.runtime.context import Runtime
from firstlight.train.plan import Horizon, make_plan

CPU = Runtime(device=torch.device("cpu"))
MIB = 2**20


def plan_of(*, rows=24, world_size=1):
    return make_plan(
        1, vocab_size=320, seq_len=32, total_batch_size=32 * rows * world_size, horizon=Horizon("steps", 5),
        world_size=world_size,
    )  # fmt: skip


def parts_of(plan, runtime=CPU):
    return assemble(plan, runtime, compiled=False, seed=3, checkpoint_activations=False)


class Machine:
    """A device with so much memory, on which a trial needs ``fixed + rows * each`` bytes."""

    def __init__(self, memory: float, *, fixed: int = 100, each: int = 10) -> None:
        self.memory, self.fixed, self.each = memory, fixed, each
        self.tried: list[int] = []

    def __call__(self, rows: int) -> int | None:
        self.tried.append(rows)
        needed = self.fixed + rows * self.each
        return needed if needed <= self.memory else None


def test_without_a_limit_sizes_are_tried_until_one_fails():
    machine = Machine(170)
    found = largest_that_fits([1, 2, 4, 8, 16], machine)
    assert (found.rows, machine.tried) == (4, [1, 2, 4, 8])
    assert "8 did not fit" in found.reason


def test_the_whole_step_is_the_most():
    machine = Machine(math.inf)
    found = largest_that_fits([1, 2, 3, 6], machine)
    assert (found.rows, found.peak_bytes, machine.tried) == (6, 160, [1, 2, 3, 6])
    assert "6 (160 B); the whole step's rows" in found.reason


def test_what_would_need_more_than_the_limit_is_never_tried():
    machine = Machine(math.inf)
    found = largest_that_fits([1, 2, 4, 8, 16, 32], machine, limit_bytes=200, fixed_bytes=90)
    # The first line, from 90 to 110, is a little too steep, and foretells 130 for 2 rows. 100 + 8 * 10 = 180 fits; 16 would need 260, which the line through 4 and 8 foretells exactly.
    assert (found.rows, machine.tried) == (8, [1, 2, 4, 8])
    assert "16 would need about 260 B of 200 B" in found.reason


def test_a_trial_above_the_limit_does_not_count_although_it_ran():
    machine = Machine(math.inf, fixed=1000, each=0)
    with pytest.raises(ConfigError, match="not even 1 row"):
        largest_that_fits([1, 2], machine, limit_bytes=500)


def test_not_one_row_is_an_error_with_what_would_help():
    with pytest.raises(ConfigError, match="--activation-checkpointing"):
        largest_that_fits([1, 2], lambda rows: None)


def test_candidates_are_exactly_what_divides():
    for number in (1, 2, 7, 12, 36, 97):
        assert divisors(number) == [d for d in range(1, 100) if number / d == number // d and d <= number]


def test_the_total_batch_stays_and_the_lines_of_the_plan_follow():
    plan = plan_of(rows=24, world_size=2)
    changed = with_device_batch(plan, 6, 2)
    assert (changed.device_batch_size, changed.num_micro_batches) == (6, 4)
    assert changed.total_batch_size == plan.total_batch_size == 6 * 32 * 2 * 4
    shown = {line.name: line for line in changed.lines}
    assert shown["device_batch_size"].value == "6 rows of 32"
    assert shown["device_batch_size"].reason == "found by trial"
    assert shown["grad_accum_steps"].value == "4"
    assert [line.name for line in changed.lines] == [line.name for line in plan.lines]
    with pytest.raises(AssertionError):
        with_device_batch(plan, 5, 2)


def tensors_of(parts):
    return {
        **{f"w/{name}": t.clone() for name, t in parts.model.state_dict().items()},
        **{f"s/{name}": t.clone() for name, t in parts.optimizer.state_tensors().items()},
    }


def test_trials_change_neither_weights_nor_state_nor_gradients_nor_random_numbers():
    plan = plan_of()
    parts = parts_of(plan)
    before, random_before = tensors_of(parts), torch.get_rng_state()
    found, sentence = find_device_batch(parts, plan, CPU)
    assert (found.device_batch_size, found.num_micro_batches) == (24, 1)
    assert sentence.startswith("--device-batch-size 24, found by trial: rows that fit: 1 (")
    after = tensors_of(parts)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in parts.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_before)


class FixedMeter:
    """A meter of a machine with so much memory, which really does the work. A row takes 1 MiB."""

    share = 0.5

    def __init__(self, available: int) -> None:
        self._available = available
        self._num_done = 0

    def available_bytes(self) -> int:
        return self._available

    def peak_bytes_of(self, work):
        work()
        self._num_done += 1
        return [1, 2, 3, 4, 6, 8, 12, 24][self._num_done - 1] * MIB


def find_with(runtime, available_mib: list[int]) -> tuple[int, int, str]:
    plan = plan_of(rows=24, world_size=runtime.world_size)
    state_bytes = count.optimizer_bytes(plan.model)
    meter = FixedMeter((available_mib[runtime.rank] * MIB + state_bytes) * runtime.world_size)
    autobatch.meter_for = lambda device: meter
    found, sentence = find_device_batch(parts_of(plan, runtime), plan, runtime)
    return found.device_batch_size, found.num_micro_batches, sentence


def test_all_ranks_take_what_the_one_with_the_least_memory_can():
    # Half of what is available may be used: 8 MiB on rank 1, so 8 rows of 1 MiB.
    assert [found[:2] for found in run_ranks(find_with, 2, [48, 16])] == [(8, 3), (8, 3)]


def test_memory_that_cannot_be_measured_leaves_the_estimate_and_says_so(monkeypatch):
    monkeypatch.setattr(autobatch, "meter_for", lambda device: None)
    plan = plan_of()
    found, sentence = find_device_batch(parts_of(plan), plan, CPU)
    assert found == plan
    assert "does not tell what memory is in use" in sentence


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux only")


@needs_proc
@pytest.mark.parametrize("can_reset", [True, False])
def test_a_peak_that_is_gone_again_is_measured(monkeypatch, can_reset):
    if not can_reset:
        monkeypatch.setattr(autobatch, "_reset_peak", lambda: False)
    elif not autobatch._reset_peak():
        pytest.skip("this system does not let a process set its peak back")
    meter = CpuMeter()

    def work(num_bytes: int) -> None:
        held = torch.ones(num_bytes, dtype=torch.uint8)
        held.add_(1)
        for _ in range(5):
            held.max()

    for size in (200 * MIB, 60 * MIB):
        peak = meter.peak_bytes_of(lambda size=size: work(size))
        assert peak == pytest.approx(size, abs=30 * MIB)
    assert meter.available_bytes() > 0


@needs_proc
def test_running_out_of_memory_is_no_crash_and_other_errors_are_not_hidden():
    meter = CpuMeter()
    assert meter.peak_bytes_of(lambda: torch.empty(2**60, dtype=torch.uint8).sum()) is None
    with pytest.raises(RuntimeError, match="shape"):
        meter.peak_bytes_of(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@needs_proc
def test_a_process_of_its_own_never_grows_beyond_its_limit(monkeypatch):
    plan = make_plan(
        2, vocab_size=512, seq_len=128, total_batch_size=128 * 512, horizon=Horizon("steps", 5), memory_bytes=2**40
    )
    parts = parts_of(plan)
    limit_bytes = 60 * MIB
    state_bytes = count.optimizer_bytes(plan.model)
    monkeypatch.setattr(CpuMeter, "available_bytes", lambda self: int(limit_bytes / autobatch.CPU_SHARE) + state_bytes)
    before = hardware.rss_bytes()
    peaks = []
    real = CpuMeter.peak_bytes_of
    monkeypatch.setattr(CpuMeter, "peak_bytes_of", lambda self, work: peaks.append(real(self, work)) or peaks[-1])
    found, sentence = find_device_batch(parts, plan, CPU)
    assert before is not None
    assert 1 <= found.device_batch_size < 512
    assert max(peaks) < 1.5 * limit_bytes
    assert "would need about" in sentence or "did not fit" in sentence


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_limit_of_a_container_counts_and_cached_files_do_not(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    root = tmp_path / "cgroup"
    group(root)
    group(root / "job", memory__max="1000\n", memory__current="700\n", memory__stat="anon 500\ninactive_file 150\n")
    group(root / "job" / "step", memory__max="max\n", memory__current="10\n", memory__stat="inactive_file 0\n")
    # The job's limit holds for its steps: 1000 - 700 + 150.
    assert autobatch._cgroup_available(root=root, own=own) == 450
    own.write_text("4:cpu:/job\n9:memory:/old\n")
    group(
        root / "memory" / "old", memory__limit_in_bytes="2000\n", memory__usage_in_bytes="500\n",
        memory__stat="total_inactive_file 100\n",
    )  # fmt: skip
    assert autobatch._cgroup_available(root=root, own=own) == 1600


def test_no_limit_and_no_groups_are_no_limit(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/\n")
    group(tmp_path / "cgroup", memory__max="max\n", memory__current="700\n", memory__stat="inactive_file 150\n")
    assert autobatch._cgroup_available(root=tmp_path / "cgroup", own=own) is None
    assert autobatch._cgroup_available(root=tmp_path / "none", own=tmp_path / "missing") is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_running_out_is_caught_and_gives_its_memory_back():
    device = torch.device("cuda", 0)
    meter = GpuMeter(device)
    free = meter.available_bytes()
    assert meter.peak_bytes_of(lambda: torch.empty(64 * MIB, dtype=torch.uint8, device=device)) >= 64 * MIB
    assert meter.peak_bytes_of(lambda: torch.empty(2 * free, dtype=torch.uint8, device=device)) is None
    assert meter.available_bytes() == pytest.approx(free, rel=0.01)
