"""`--device-batch-size auto`: the largest micro-batch that fits, found by trial. The total batch stays as it is.

A trial is a forward and a backward pass on made-up ids, whose gradients are dropped. The sizes are the divisors of the rows
of one process, the small ones first, so each trial tells what the next one will need: on a CPU, where too much memory ends
the process, the one that would not fit is never tried.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from firstlight.errors import ConfigError
from firstlight.model import count, sharding
from firstlight.recipes.assemble import Parts
from firstlight.runtime import environment, hardware
from firstlight.runtime.console import format_bytes
from firstlight.runtime.context import Runtime
from firstlight.train.loss import summed_cross_entropy
from firstlight.train.plan import Plan, PlanLine
from firstlight.train.state import preserved_rng

CPU_SHARE = 0.8
GPU_SHARE = 0.9
"""Parts of the available memory that a trial may take; the rest is for what a trial does not do."""

SAMPLE_EVERY_S = 0.002


@dataclass(frozen=True)
class Found:
    """The largest number of rows that fits, a sentence that says what was tried, and the most bytes of the last good trial."""

    rows: int
    reason: str
    peak_bytes: int


def divisors(number: int) -> list[int]:
    """All divisors, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, number + 1) if number % d == 0]


def expected_bytes(trials: Sequence[tuple[int, int]], rows: int, *, fixed_bytes: int = 0) -> float:
    """Bytes that a trial of ``rows`` will need: a straight line through the last two trials (rows, bytes).

    fixed_bytes: what no rows would need. The first line begins there; if that is too low, the line is too steep, and so on
    the safe side.

    >>> expected_bytes([(1, 100), (2, 150)], 4)
    250.0
    >>> expected_bytes([(1, 100)], 3, fixed_bytes=50)
    200.0
    """
    if not trials:
        return 0.0
    (rows_before, bytes_before), (rows_last, bytes_last) = ([(0, fixed_bytes), *trials])[-2:]
    slope = max(0.0, (bytes_last - bytes_before) / (rows_last - rows_before))
    return bytes_last + slope * (rows - rows_last)


def largest_that_fits(
    candidates: Sequence[int],
    try_rows: Callable[[int], int | None],
    *,
    limit_bytes: float = math.inf,
    fixed_bytes: int = 0,
) -> Found:
    """Try numbers of rows, ascending, until one does not fit or would not; the last that did is the answer.

    try_rows: rows -> bytes that were needed, or None where memory ran out. limit_bytes: never tried is what is expected to
    need more, and what has needed more does not count as fitting. fixed_bytes: what no rows would need.

    Raises ConfigError where the smallest does not fit.
    """
    trials: list[tuple[int, int]] = []
    why = "the whole step's rows"
    for rows in candidates:
        expected = expected_bytes(trials, rows, fixed_bytes=fixed_bytes)
        if expected > limit_bytes:
            why = f"{rows} would need about {format_bytes(expected)} of {format_bytes(limit_bytes)}"
            break
        needed = try_rows(rows)
        if needed is None or needed > limit_bytes:
            why = f"{rows} did not fit" + (f" into {format_bytes(limit_bytes)}" if limit_bytes < math.inf else "")
            break
        trials.append((rows, needed))
    if not trials:
        raise ConfigError(
            f"--device-batch-size auto: not even {candidates[0]} row of this model fits into memory ({why})",
            hint="use --activation-checkpointing, a smaller --depth or --max-seq-len, or --shard-weights on several devices",
        )
    tried = ", ".join(f"{rows} ({format_bytes(needed)})" for rows, needed in trials)
    rows, peak_bytes = trials[-1]
    return Found(rows, f"--device-batch-size {rows}, found by trial: rows that fit: {tried}; {why}", peak_bytes)


def with_device_batch(plan: Plan, rows: int, world_size: int, *, reason: str = "found by trial") -> Plan:
    """The plan with micro-batches of ``rows``: the accumulation and the lines that say so follow; the total batch stays."""
    rows_per_rank = plan.total_batch_size // (plan.seq_len * world_size)
    assert rows_per_rank % rows == 0, f"{rows} does not divide {rows_per_rank} rows"
    num_micro_batches = rows_per_rank // rows
    changed = {
        "device_batch_size": PlanLine("device_batch_size", f"{rows} rows of {plan.seq_len}", reason),
        "grad_accum_steps": PlanLine(
            "grad_accum_steps",
            f"{num_micro_batches}",
            f"{plan.total_batch_size:,} / ({rows} x {plan.seq_len} x {world_size})",
        ),
    }
    lines = tuple(changed.get(line.name, line) for line in plan.lines)
    return replace(plan, device_batch_size=rows, num_micro_batches=num_micro_batches, lines=lines)


def find_device_batch(parts: Parts, plan: Plan, runtime: Runtime) -> tuple[Plan, str]:
    """The plan with the largest micro-batch that fits on every process, and a sentence for the run's notes. Collective.

    Weights, optimizer state and random generators stay as they are. Where memory cannot be measured (macOS, Windows) the
    plan's own estimate stays, and the sentence says so. Raises ConfigError where not one row fits.
    """
    meter = meter_for(runtime.device)
    # All ranks have to agree on that too: their trials may contain collectives.
    if runtime.control.largest(0.0 if meter is not None else 1.0) > 0:
        return plan, (
            f"--device-batch-size auto: this system does not tell what memory is in use, so it is {plan.device_batch_size}, "
            "by the plan's estimate"
        )
    assert meter is not None
    available = meter.available_bytes()
    if runtime.device.type == "cpu":
        # The optimizer's state is memory that is asked for and not touched before the first update.
        available = available // environment.local_world_size() - count.optimizer_bytes(plan.model)
    limit = -runtime.control.largest(-float(available * meter.share))

    def try_rows(rows: int) -> int | None:
        needed = meter.peak_bytes_of(lambda: _trial(parts, plan, runtime, rows))
        most = runtime.control.largest(math.inf if needed is None else float(needed))
        return None if most == math.inf else int(most)

    rows_per_rank = plan.total_batch_size // (plan.seq_len * runtime.world_size)
    # Without rows a trial would still make the gradients.
    fixed_bytes = count.weights_bytes(plan.model) // (runtime.world_size if sharding.is_sharded(parts.model) else 1)
    with preserved_rng(runtime.device):
        found = largest_that_fits(divisors(rows_per_rank), try_rows, limit_bytes=limit, fixed_bytes=fixed_bytes)
    return with_device_batch(plan, found.rows, runtime.world_size), found.reason


def _trial(parts: Parts, plan: Plan, runtime: Runtime, rows: int) -> None:
    """Forward and backward of one micro-batch of made-up ids, without an update."""
    shape = (rows, plan.seq_len)
    ids_BT = torch.arange(rows * plan.seq_len, device=runtime.device).remainder(plan.model.vocab_size).view(shape)
    # Plain code needs about a tenth more than compiled code and no minute to compile each size; but on GPUs attention in
    # windows writes out all scores where it is not compiled.
    compiled = parts.compiled and runtime.device.type == "cuda"
    hidden = parts.hidden if compiled else parts.model.hidden
    try:
        summed_cross_entropy(
            hidden(ids_BT),
            parts.model.lm_head.weight,
            ids_BT,
            softcap=plan.model.softcap,
            compute_dtype=runtime.compute_dtype,
            compiled=compiled,
        ).backward()
        runtime.synchronize()
    finally:
        # Memory may have run out in the middle of the pass.
        sharding.drop_pass(parts.model)
        parts.optimizer.zero_grad()
        if compiled:
            # torch gives up compiling a function after eight shapes; the size that is chosen must not be the ninth.
            torch.compiler.reset()


class GpuMeter:
    """Memory of an NVIDIA or AMD GPU: the most that tensors took, above what they took when the meter was made."""

    share = GPU_SHARE

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = torch.cuda.memory_allocated(device)

    def available_bytes(self) -> int:
        """Bytes that tensors could take besides those that they take now."""
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + unused

    def peak_bytes_of(self, work: Callable[[], None]) -> int | None:
        """Bytes that ``work`` took at most, or None where memory ran out."""
        torch.cuda.reset_peak_memory_stats(self._device)
        ran_out = False
        try:
            work()
        except torch.cuda.OutOfMemoryError:
            # Not emptied here: the exception still holds the frames, and they the tensors.
            ran_out = True
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.empty_cache()
        return None if ran_out else max(0, peak - self._before)


class CpuMeter:
    """Memory of this process on a CPU: how far what is in RAM has grown since the meter was made.

    Not since the trial began: of what one trial gives back the C library keeps a part for the next.
    Linux notes the highest value, which may be set back through ``/proc/self/clear_refs``; where that is not allowed a
    thread looks every two milliseconds.
    """

    share = CPU_SHARE

    def __init__(self) -> None:
        self._before = hardware.rss_bytes() or 0

    def available_bytes(self) -> int:
        """Bytes that this machine, or the container that this process is in, can still give."""
        found = [value for value in (_meminfo_available(), _cgroup_available()) if value is not None]
        return min(found)

    def peak_bytes_of(self, work: Callable[[], None]) -> int | None:
        """Bytes by which the process grew at most, or None where memory ran out."""
        try:
            if _reset_peak():
                work()
                peak = hardware.peak_rss_bytes() or 0
            else:
                peak = _sampled_peak(work)
        except (MemoryError, RuntimeError) as error:
            # torch's allocator for CPUs has no error of its own for this.
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            return None
        return max(0, peak - self._before)


def meter_for(device: torch.device) -> GpuMeter | CpuMeter | None:
    """What measures memory on a device, or None where nothing does."""
    if device.type == "cuda":
        return GpuMeter(device)
    if device.type == "cpu" and hardware.rss_bytes() is not None and _meminfo_available() is not None:
        return CpuMeter()
    return None


def _reset_peak() -> bool:
    """Whether the highest value of this process's memory could be set back to the present one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _sampled_peak(work: Callable[[], None]) -> int:
    most = [hardware.rss_bytes() or 0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            most[0] = max(most[0], hardware.rss_bytes() or 0)

    thread = threading.Thread(target=look, name="firstlight-memory", daemon=True)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return most[0]


def _meminfo_available() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup_available(*, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes until the limit of this process's control group or of one above it; None where there is no limit.

    Memory that only caches files counts as available: it is given back when it is needed.
    """
    with suppress(OSError, ValueError):
        found = []
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, names = root, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            # Inside a container the path is often the host's, and the group itself is at the top.
            folders = [top, *(top / Path(*Path(path).parts[1 : i + 1]) for i in range(1, len(Path(path).parts)))]
            found += [value for folder in folders if (value := _group_available(folder, *names)) is not None]
        return min(found, default=None)
    return None


def _group_available(folder: Path, limit_name: str, used_name: str, cached_name: str) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # The first kind of control group writes "no limit" as a number beyond all memory.
    if limit == "max" or int(limit) > 1 << 60:
        return None
    return max(0, int(limit) - used + int(stat.get(cached_name, 0)))
