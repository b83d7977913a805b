"""`firstlight bench launch`: from the command to the first training step, with cold and with warm caches of compiled code.

Each launch is a process of its own, `firstlight train base` on made-up text: imports, plan, tokenizer, token store, weights,
compilation, first step. Cold: an empty folder for torch.compile's cache. Warm: the same folder again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from firstlight.errors import ConfigError, DataError
from firstlight.recipes.bench.common import Report, Timing, bench_plan
from firstlight.recipes.bench.data import write_texts
from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime import environment

NUM_STEPS = 3
TEXT_BYTES = 400_000


def first_step_unix_s(run_dir: Path) -> float:
    """When the first row of kind ``train`` was written. Raises DataError where there is none."""
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            return float(row["time_unix_s"])
    raise DataError(f"{run_dir} has no training step")


def launch_arguments(options: BenchOptions, data: Path, name: str) -> list[str]:
    """Command line of one launch."""
    words = [
        sys.executable, "-m", "firstlight", "train", "base", "--run", name, "--data", str(data),
        "--num-iterations", str(NUM_STEPS), "--depth", str(options.depth), "--preset", options.preset,
        "--head-dim", str(options.head_dim), "--device", options.device, "--dtype", options.dtype,
        "--compile", "on" if options.compile == "auto" else options.compile, "--sample-every", "0",
    ]  # fmt: skip
    for flag in ("vocab_size", "max_seq_len", "n_kv_head", "total_batch_size", "threads"):
        if (value := getattr(options, flag)) is not None:
            words += ["--" + flag.replace("_", "-"), str(value)]
    return words


def launch(options: BenchOptions, *, folder: Path, data: Path, name: str, compile_cache: Path) -> tuple[float, float]:
    """Start one training run and wait for its end: seconds to its first step, and in all. Raises ConfigError or DataError where it fails."""
    changes = {
        "FIRSTLIGHT_RUNS": str(folder / "runs"),
        "FIRSTLIGHT_CACHE": str(folder / f"cache_{name}"),
        "TORCHINDUCTOR_CACHE_DIR": str(compile_cache),
    }
    started_s, start = time.time(), time.perf_counter()
    done = subprocess.run(
        launch_arguments(options, data, name), env=environment.child_environment(changes), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    total_s = time.perf_counter() - start
    if done.returncode != 0:
        kind = ConfigError if done.returncode == ConfigError.exit_code else DataError
        raise kind(f"the launch {name} failed: {done.stderr.strip().removeprefix('error: ')[-500:]}")
    return first_step_unix_s(folder / "runs" / name) - started_s, total_s


def bench_launch(options: BenchOptions, *, rounds: int | None = None) -> Report:
    """Launch cold, then warm from the same cache of compiled code; ``rounds`` times (the tokens are made anew each time).

    Raises ConfigError for what cannot work, DataError where a launch fails otherwise.
    """
    bench_plan(options)
    rounds = rounds or min(3, options.rounds)
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    totals: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "texts").mkdir()
        write_texts(folder / "texts", shard_bytes=TEXT_BYTES, num_shards=2, seed=options.seed)
        for i in range(rounds):
            for kind in times:
                first_s, total_s = launch(
                    options, folder=folder, data=folder / "texts", name=f"{kind}-{i}",
                    compile_cache=folder / f"compiled-{i}",
                )  # fmt: skip
                times[kind].append(first_s)
                totals[kind].append(total_s)
    report = Report("launch", f"launch to first step: depth {options.depth}, {options.preset}")
    for kind, values in times.items():
        median_s, total_s = Timing(tuple(values)).median_s, Timing(tuple(totals[kind])).median_s
        report.figures[f"{kind}_s"], report.figures[f"{kind}_total_s"] = median_s, total_s
        meaning = "empty cache of compiled code" if kind == "cold" else "the same cache again"
        report.line(f"{kind}: first step after", f"{median_s:,.1f} s", f"{meaning}; whole run {total_s:,.1f} s")
    report.figures |= {"rounds": rounds, "num_steps": NUM_STEPS, "depth": options.depth}
    report.notes = [
        f"{NUM_STEPS} steps on {2 * TEXT_BYTES / 1e6:.1f} MB of made-up text; tokenizer and token store are made in each launch",
        "torch.compile is on where --compile does not say otherwise: a run this short would not use it",
    ]
    return report
