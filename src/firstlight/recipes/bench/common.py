"""What the benchmarks share: turns and medians, made-up ids, the machine's peaks, and the form of a report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch

from firstlight.data.batch import Batch, Position
from firstlight.errors import ConfigError
from firstlight.recipes.assemble import choose_compile, has_native_layers
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime import environment, hardware
from firstlight.runtime.context import Runtime
from firstlight.train.dial import REFERENCE_BATCH_TOKENS, seq_len_for
from firstlight.train.plan import Horizon, Plan, make_plan

LONG_RUN_STEPS = 1_000_000
"""A horizon for which `choose_compile` takes what training at length would take."""
SMALLEST_VOCABULARY = 2
COPY_BYTES = 64 * 2**20
RANDOM_IDS = "ids are random: rates do not depend on the text, losses mean nothing"


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return median(self.times_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """The middle half of the calls lies between these."""
        if len(self.times_s) < 2:
            return self.times_s[0], self.times_s[0]
        low, _, high = quantiles(self.times_s, n=4, method="inclusive")
        return low, high

    def describe_ms(self) -> str:
        """Median and quartiles, ``12.3 ms (12.1 to 12.8)``."""
        low, high = self.quartiles_s
        return f"{1e3 * self.median_s:,.2f} ms ({1e3 * low:,.2f} to {1e3 * high:,.2f})"


@dataclass
class Report:
    """What one benchmark found. figures: raw numbers, for JSON. lines: (what, value, what it means), for people."""

    name: str
    title: str
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self, what: str, value: str, meaning: str = "") -> None:
        self.lines.append((what, value, meaning))

    def to_dict(self) -> dict[str, Any]:
        return {"benchmark": self.name, "title": self.title, **self.figures, "notes": self.notes}


def take_turns(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, runtime: Runtime, warm_up: int = 1
) -> dict[str, Timing]:
    """Time several functions in alternation, so that another program's load falls on all of them alike."""
    for run in runs.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    with steady_clock():
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(timed(run, runtime))
    return {name: Timing(tuple(values)) for name, values in times.items()}


def timed(run: Callable[[], object], runtime: Runtime) -> float:
    """Seconds of one call, with the device idle at both ends."""
    runtime.synchronize()
    start = time.perf_counter()
    run()
    runtime.synchronize()
    return time.perf_counter() - start


@contextmanager
def steady_clock() -> Iterator[None]:
    """No garbage collection while something is timed, as in training."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def bench_plan(options: BenchOptions) -> Plan:
    """The plan of a long run with these options. Raises ConfigError for what cannot work."""
    if options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds} measures nothing", hint="the smallest is 1; 5 give a median")
    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"--threads {options.threads} cannot work", hint="the smallest is 1; leave it away for all")
    if options.vocab_size is not None and options.vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"--vocab-size {options.vocab_size} is too small for made-up ids",
            hint=f"the smallest is {SMALLEST_VOCABULARY}",
        )
    seq_len = options.max_seq_len or seq_len_for(max(1, options.depth))
    rows = options.device_batch_size
    if rows is None:
        rows = max(1, (options.total_batch_size or REFERENCE_BATCH_TOKENS) // max(1, seq_len))
    made = make_plan(
        options.depth,
        horizon=Horizon("steps", LONG_RUN_STEPS),
        preset=options.preset,
        vocab_size=options.vocab_size,
        seq_len=options.max_seq_len,
        head_dim=options.head_dim,
        n_kv_head=options.n_kv_head,
        total_batch_size=options.total_batch_size or (rows * seq_len if rows > 0 and seq_len > 0 else None),
        device_batch_size=rows,
    )
    return made


def compile_choice(options: BenchOptions, plan: Plan, runtime: Runtime) -> tuple[bool, str]:
    """Whether to compile, and why: what a long run would do."""
    return choose_compile(
        options.compile, saved=None, device_type=runtime.device.type, compiler=environment.cxx_compiler(),
        has_native_layers=has_native_layers(device_type=runtime.device.type, dtype=runtime.compute_dtype), plan=plan,
        world_size=runtime.world_size,
    )  # fmt: skip


def random_batches(plan: Plan, runtime: Runtime, *, num: int, seed: int) -> list[Batch]:
    """Micro-batches of random ids, every place a target."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num, plan.device_batch_size, plan.seq_len + 1)
    ids = torch.randint(plan.model.vocab_size, shape, generator=generator)
    return [
        Batch(rows[:, :-1].contiguous().to(runtime.device), rows[:, 1:].contiguous().to(runtime.device), Position())
        for rows in ids
    ]


def peaks(runtime: Runtime) -> dict[str, Any]:
    """What the machine does at most: matmuls in the compute dtype and in float32, and copying, all measured now."""
    found: dict[str, Any] = {"device": str(runtime.device), "dtype": runtime.dtype_name, "threads": runtime.num_threads}
    peak = hardware.measure_peak(runtime.device, runtime.compute_dtype)
    found["gemm_peak_flops"], found["gemm_peak_source"] = peak.flops_per_s, peak.source
    if runtime.compute_dtype is not torch.float32:
        found["gemm_peak_flops_fp32"] = hardware.measure_peak(runtime.device, torch.float32).flops_per_s
    if runtime.device.type == "cuda":
        known = hardware.peak_of_gpu(torch.cuda.get_device_name(runtime.device))
        if known is not None and runtime.compute_dtype is not torch.float32:
            found["data_sheet_peak_flops"], found["data_sheet"] = known.flops_per_s, known.source
    found["copy_bytes_per_s"] = copy_bytes_per_s(runtime)
    return found


def copy_bytes_per_s(runtime: Runtime, *, num_bytes: int = COPY_BYTES) -> float:
    """Bytes read and written in a second by the best of five copies of a tensor that no cache holds."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=runtime.device)
    target = torch.empty_like(source)
    best_s = min(timed(lambda: target.copy_(source), runtime) for _ in range(5))
    return 2 * num_bytes / best_s


def describe_peaks(found: Mapping[str, Any]) -> str:
    """The peaks in one line."""
    parts = [f"{found['dtype']} {found['gemm_peak_flops'] / 1e9:,.0f} GFLOP/s"]
    if "gemm_peak_flops_fp32" in found:
        parts.append(f"fp32 {found['gemm_peak_flops_fp32'] / 1e9:,.0f} GFLOP/s")
    if "data_sheet_peak_flops" in found:
        parts.append(f"data sheet {found['data_sheet_peak_flops'] / 1e9:,.0f} GFLOP/s")
    parts.append(f"copying {found['copy_bytes_per_s'] / 1e9:,.1f} GB/s")
    threads = f", {found['threads']} threads" if found["device"] == "cpu" else ""
    return f"peaks of this machine ({found['device']}{threads}): " + ", ".join(parts)


def describe_model(plan: Plan, preset: str) -> str:
    """The model in one line."""
    m = plan.model
    heads = "1 head" if m.n_head == 1 else f"{m.n_head} heads"
    return (
        f"depth {plan.depth}, {preset}, width {m.n_embd}, {heads} of {m.head_dim}, V {m.vocab_size:,}, T {plan.seq_len}"
    )


def ratio(a: float, b: float) -> float:
    """a / b, NaN where b is 0."""
    return a / b if b else float("nan")


def all_notes(*groups: Sequence[str]) -> list[str]:
    """Sentences of several groups, each once."""
    return list(dict.fromkeys(sentence for group in groups for sentence in group))
