"""The training step: tokens/s, memory and rate of arithmetic, beside the peer's model and optimizer.

    python benchmarks/step.py                        ours: preset modern with heads of 64 and of 128, classic with 64
    python benchmarks/step.py --peer NANOCHAT        and nanochat's step from a checkout: as shipped, eager, and in bf16
    python benchmarks/step.py --rounds 1 --steps 1   a trial

Depth 4, width 256, 8 rows of 512 tokens, 8,192 ids; random ids. A step is forward, backward and optimizer. Each program is a
process of its own, which compiles and warms up once and then waits; in each round every process does --steps steps in its
turn, so that load from elsewhere falls on all alike. Figures are medians over all steps; the ratio is the median over rounds of
ours / peer. Rate of arithmetic: each program's own count of model FLOPs (attention not halved) over the time of the step.
Memory: peak of the resident process, before anything but training ran in it; compilation included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results

SHAPE = {"depth": 4, "width": 256, "rows": 8, "seq_len": 512, "vocab_size": 8192}
OURS = {
    "firstlight modern, heads of 64": {"preset": "modern", "head_dim": 64},
    "firstlight modern, heads of 128": {"preset": "modern", "head_dim": 128},
    "firstlight classic, heads of 64": {"preset": "classic", "head_dim": 64},
}
PEERS = {
    "peer as shipped (fp32, compiled)": {"compile": True, "dtype": "float32"},
    "peer eager (fp32)": {"compile": False, "dtype": "float32"},
    "peer in bf16, compiled": {"compile": True, "dtype": "bfloat16"},
}
COLUMNS = ("program", "tokens/s", "step ms", "GFLOP/s", "peak MB", "gemm_fraction", "ours / peer")
WARM_UP_STEPS = 3
MARK = "ANSWER "
"""Starts each line that a process answers with; compilers print too."""


def ours(case: dict[str, Any]) -> tuple[Any, float, Any]:
    """(step, its FLOPs, a GemmBench that is made when asked for). The compute dtype is what `--dtype auto` takes."""
    from firstlight.recipes.bench.options import BenchOptions
    from firstlight.recipes.bench.step import gemms_of, make_step_bench
    from firstlight.runtime.context import open_runtime
    from firstlight.runtime.gemm_bench import GemmBench

    options = BenchOptions(
        depth=SHAPE["depth"], preset=case["preset"], head_dim=case["head_dim"], vocab_size=SHAPE["vocab_size"],
        max_seq_len=SHAPE["seq_len"], device_batch_size=SHAPE["rows"], device="cpu",
    )  # fmt: skip
    runtime = open_runtime(device="cpu", dtype="auto", num_threads=case["threads"]).__enter__()
    bench = make_step_bench(options, runtime)
    assert bench.plan.model.n_embd == SHAPE["width"], bench.plan.model
    flops = bench.plan.flops_per_token * bench.plan.total_batch_size
    return bench.step, flops, lambda: GemmBench(gemms_of(bench.plan, runtime, bench.parts), runtime.device)


def peer(case: dict[str, Any]) -> tuple[Any, float, Any]:
    """The same of the peer's model, with full attention in all layers as its script for CPUs has it."""
    import torch

    sys.path.insert(0, case["peer"])
    from nanochat.gpt import GPT, GPTConfig  # pyrefly: ignore[missing-import]

    torch.set_num_threads(case["threads"])
    heads = SHAPE["width"] // 64
    with torch.device("meta"):
        model = GPT(
            GPTConfig(
                sequence_len=SHAPE["seq_len"], vocab_size=SHAPE["vocab_size"], n_layer=SHAPE["depth"], n_head=heads,
                n_kv_head=heads, n_embd=SHAPE["width"], window_pattern="L",
            )
        )  # fmt: skip
    model.to_empty(device="cpu")
    model.init_weights()
    optimizer = model.setup_optimizer()
    run = torch.compile(model, dynamic=False) if case["compile"] else model
    ids = torch.randint(SHAPE["vocab_size"], (4, SHAPE["rows"], SHAPE["seq_len"] + 1))
    done = 0

    def step() -> None:
        nonlocal done
        batch = ids[done % len(ids)]
        done += 1
        loss = run(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()

    return step, float(model.estimate_flops()) * SHAPE["rows"] * SHAPE["seq_len"], None


def serve(case: dict[str, Any]) -> None:
    """A process's side: compile and warm up, then do what each line of standard input says and answer in one line."""
    import gc

    from firstlight.runtime import hardware

    def answer(**found: Any) -> None:
        print(MARK + json.dumps(found), flush=True)

    begun = time.perf_counter()
    step, flops, make_gemms = (peer if "peer" in case else ours)(case)
    for _ in range(WARM_UP_STEPS):
        step()
    gc.collect()
    gc.disable()
    answer(flops=flops, ready_s=time.perf_counter() - begun)
    gemms = None
    for line in sys.stdin:
        words = line.split()
        if words[0] == "steps":
            times = []
            for _ in range(int(words[1])):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
            answer(times_s=times, peak_rss_bytes=hardware.peak_rss_bytes())
        elif words[0] == "gemms":
            gemms = gemms or (make_gemms() if make_gemms else None)
            if gemms:
                gemms.run_round()
            answer(gemms_s=gemms.step_s() if gemms else None)


class Program:
    """A process that steps when it is told to."""

    def __init__(self, name: str, case: dict[str, Any], folder: Path) -> None:
        self.name, self.case = name, case
        self._errors = (folder / f"{len(list(folder.iterdir()))}.txt").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(case)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env=os.environ | {"NANOCHAT_DTYPE": case.get("dtype", "float32")},
        )  # fmt: skip
        self.rounds_s: list[list[float]] = []
        self.peak_rss_bytes = 0
        self.gemms_s: float | None = None
        self.flops = float(self._answer()["flops"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self._errors.seek(0)
        raise SystemExit(f"{self.name} ended: {self._errors.read()[-2000:]}")

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def run_round(self, num_steps: int) -> None:
        found = self._ask(f"steps {num_steps}")
        self.rounds_s.append(found["times_s"])
        # The products alone come after the first round: what they allocate is not the training's.
        self.peak_rss_bytes = self.peak_rss_bytes or found["peak_rss_bytes"]
        self.gemms_s = self._ask("gemms")["gemms_s"]

    def step_s(self) -> float:
        return statistics.median(s for times in self.rounds_s for s in times)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._errors.close()


def ratio(one: Program, other: Program) -> float:
    """How many times the tokens/s of the other: the median over rounds."""
    pairs = zip(one.rounds_s, other.rounds_s, strict=True)
    return statistics.median(statistics.median(b) / statistics.median(a) for a, b in pairs)


def measure(cases: dict[str, dict[str, Any]], *, rounds: int, steps: int) -> list[Program]:
    """Start the programs one after another, then let them take turns."""
    with tempfile.TemporaryDirectory() as folder:
        programs: list[Program] = []
        try:
            for name, case in cases.items():
                print(f"starting: {name}", flush=True)
                programs.append(Program(name, case, Path(folder)))
            for i in range(rounds):
                for program in programs:
                    program.run_round(steps)
                print(f"round {i + 1} of {rounds}", flush=True)
        finally:
            for program in programs:
                program.close()
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="DIR", help="a checkout of nanochat, to run beside ours")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each program")
    parser.add_argument("--json", type=Path, help="write the result to this file instead of results/")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(json.loads(args.serve))
        return
    if args.peer and not (args.peer / "nanochat" / "gpt.py").exists():
        parser.error(f"--peer {args.peer}: there is no nanochat/gpt.py in it")
    if min(args.rounds, args.steps, args.threads) < 1:
        parser.error("--rounds, --steps and --threads are 1 or more")

    common = {"threads": args.threads}
    cases = {name: case | common for name, case in OURS.items()}
    if args.peer:
        cases |= {name: case | common | {"peer": str(args.peer.resolve())} for name, case in PEERS.items()}
    programs = measure(cases, rounds=args.rounds, steps=args.steps)

    tokens = SHAPE["rows"] * SHAPE["seq_len"]
    best = programs[0]
    rows, figures = [], {}
    for program in programs:
        step_s = program.step_s()
        times = ratio(best, program) if "peer" in program.case else None
        fraction = program.gemms_s / step_s if program.gemms_s else None
        rows.append([
            program.name, round(tokens / step_s), round(1e3 * step_s), round(program.flops / step_s / 1e9),
            round(program.peak_rss_bytes / 1e6), f"{fraction:.2f}" if fraction else "",
            f"{times:.2f}x" if times else "",
        ])  # fmt: skip
        figures[program.name] = {
            "tokens_per_s": tokens / step_s,
            "step_s": step_s,
            "flops_per_s": program.flops / step_s,
            "peak_rss_bytes": program.peak_rss_bytes,
            "gemm_fraction": fraction,
            "rounds_s": [statistics.median(times_s) for times_s in program.rounds_s],
        } | ({"ours_over_peer": times, "rss_over_peer": best.peak_rss_bytes / program.peak_rss_bytes} if times else {})
    notes = [
        f"depth 4, width 256, T = 512, 8 rows, 8,192 ids (random), {args.threads} threads; {args.rounds} rounds of "
        f"{args.steps} steps in turns; compiling and {WARM_UP_STEPS} warm-up steps are not counted",
        "a step is forward, backward and optimizer; ours in the dtype that `--dtype auto` chooses, compiled where a long run would be",
        "GFLOP/s: each program's own count of model FLOPs over the time of its step",
    ]
    if args.peer:
        notes.append(f"ours / peer: tokens/s of `{best.name}` over the peer's; median over rounds")
        notes.append("peer: its GPT and its own optimizer, heads of 64, full attention in all layers")
    results.show(COLUMNS, rows)
    path = results.write_result(
        "step", title="Training step on a CPU", command="python benchmarks/step.py --peer NANOCHAT", columns=COLUMNS,
        rows=rows, notes=notes, figures=figures, path=args.json,
    )  # fmt: skip
    print(path.name)


if __name__ == "__main__":
    main()
