"""Training on several gloo processes of one thread each, against one process with as many threads: the same global batch.

    python benchmarks/processes.py --processes 2 --depth 4 --rounds 7

Both worlds are made first and then take turns, so that they see the same machine. Where the time of a step goes is measured
on rank 0 in other steps than those that are timed: its own forward and backward passes, waiting for the other's, the
exchange of gradients and of weights, the update.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from statistics import median

import results


def worker(arguments: argparse.Namespace) -> int:
    """One process: builds the step, then does what each line of standard input says; rank 0 answers in JSON."""
    from firstlight.recipes.bench.options import BenchOptions
    from firstlight.recipes.bench.step import make_step_bench
    from firstlight.runtime.context import open_runtime

    world_size = int(os.environ["WORLD_SIZE"])
    threads = arguments.processes // world_size
    options = BenchOptions(
        depth=arguments.depth, max_seq_len=arguments.max_seq_len, vocab_size=arguments.vocab_size,
        device_batch_size=arguments.rows // world_size, dtype=arguments.dtype, device="cpu", compile=arguments.compile,
    )  # fmt: skip
    with open_runtime(device="cpu", dtype=arguments.dtype, num_threads=threads) as runtime:
        bench = make_step_bench(options, runtime)
        for _ in range(3):
            bench.step()

        def say(value: dict) -> None:
            if runtime.is_main:
                print(json.dumps(value), flush=True)

        say({"ready": True, "dtype": runtime.dtype_name, "compiled": bench.parts.compiled})
        for line in sys.stdin:
            word, count = line.split()
            if word == "time":
                runtime.barrier()
                say({"steps_s": [bench.step().elapsed_s for _ in range(int(count))]})
            elif word == "split":
                runtime.barrier()
                say({"split_s": split_of(bench, int(count))})
            else:
                break
    return 0


def split_of(bench, num_steps: int) -> dict[str, float]:
    """Median seconds of the parts of a step on this rank."""
    from firstlight.optim.buckets import Bucket

    names = ("start_reduce", "finish_reduce", "start_share", "finish_share")
    spent: dict[str, float] = {}
    kept = {name: getattr(Bucket, name) for name in names}

    def watched(name: str):
        def call(self) -> None:
            begun_s = time.perf_counter()
            kept[name](self)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun_s

        return call

    rows = []
    original = bench.parts.optimizer.step
    update_s: list[float] = []

    def timed_update(*args, **kwargs):
        begun_s = time.perf_counter()
        result = original(*args, **kwargs)
        update_s.append(time.perf_counter() - begun_s)
        return result

    bench.parts.optimizer.step = timed_update
    for name in names:
        setattr(Bucket, name, watched(name))
    try:
        for _ in range(num_steps):
            spent.clear()
            stats = bench.step()
            exchange_s = sum(spent.values())
            gradients_s = spent.get("start_reduce", 0.0) + spent.get("finish_reduce", 0.0)
            compute_s = stats.compute_s or stats.elapsed_s - update_s[-1]
            rows.append(
                {
                    "step": stats.elapsed_s,
                    "forward and backward": compute_s,
                    "waiting for the other": stats.elapsed_s - compute_s - update_s[-1],
                    "exchange of gradients": gradients_s,
                    "exchange of weights": exchange_s - gradients_s,
                    "update": update_s[-1] - exchange_s,
                }
            )
    finally:
        bench.parts.optimizer.step = original
        for name in names:
            setattr(Bucket, name, kept[name])
    return {name: median(row[name] for row in rows) for name in rows[0]}


class World:
    """``size`` worker processes, told what to do through their standard input."""

    def __init__(self, size: int, flags: list[str]) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.processes = []
        for rank in range(size):
            place = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", *flags],
                    env=environment,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                )
            )
        self.facts = self._answer()

    def _answer(self) -> dict:
        for line in self.processes[0].stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("a worker ended before its answer")

    def ask(self, word: str, count: int) -> dict:
        for process in self.processes:
            process.stdin.write(f"{word} {count}\n")
            process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(timeout=60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="of the global batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="in each round")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in vars(arguments).items() if name not in ("worker",)
    ]
    worlds = {size: World(size, flags) for size in (1, arguments.processes)}
    times: dict[int, list[float]] = {size: [] for size in worlds}
    for _ in range(arguments.rounds):
        for size, world in worlds.items():
            times[size].append(median(world.ask("time", arguments.steps)["steps_s"]))
    splits = {size: world.ask("split", 5)["split_s"] for size, world in worlds.items()}
    for world in worlds.values():
        world.close()
    tokens = arguments.rows * arguments.max_seq_len
    rates = {size: tokens / median(found) for size, found in times.items()}
    ratios = sorted(a / b for a, b in zip(times[1], times[arguments.processes], strict=True))
    names = list(splits[1])
    n = arguments.processes
    rows = [
        [f"1 process, {n} threads", f"{rates[1]:,.0f}", 1.0, *(f"{1e3 * splits[1][name]:,.0f}" for name in names)],
        [
            f"{n} processes, 1 thread each", f"{rates[n]:,.0f}", round(median(ratios), 2),
            *(f"{1e3 * splits[n][name]:,.0f}" for name in names),
        ],
    ]  # fmt: skip
    facts = worlds[n].facts
    results.write_result(
        "processes",
        title=f"Several processes on one machine: depth {arguments.depth}, {tokens:,} tokens a step",
        command=f"python benchmarks/processes.py --processes {n} --depth {arguments.depth} --rounds {arguments.rounds}",
        columns=["world", "tokens/s", "ratio", *(f"{name}, ms" for name in names)],
        rows=rows,
        notes=[
            f"Ratio: median over {arguments.rounds} rounds of the two step times measured one after the other "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {facts['dtype']}, compiled: {facts['compiled']}.",
            "The parts are medians of five other steps, on rank 0.",
        ],
        figures={"tokens_per_s": rates, "ratio": median(ratios), "ratios": ratios, "split_s": splits, **facts},
    )
    for row in rows:
        print(row)
    print(json.dumps({"ratio": median(ratios), "ratios": [round(r, 3) for r in ratios]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
