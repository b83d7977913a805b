"""One optimizer step at the shapes of depth 6, beside the peer's MuonAdamW, in turns in one process.

    python benchmarks/optim_step.py                        ours alone, beside its matrix products
    python benchmarks/optim_step.py --peer NANOCHAT        and nanochat's `model.setup_optimizer()` from a checkout
    python benchmarks/optim_step.py --dtypes bf16 --depth 4

Ours is the model of preset modern with 8,192 ids, so both update the same kinds of parameters: the blocks' matrices (Muon),
head, token embedding, value embeddings of every second layer, and a few scalars and gates (AdamW). Both run as in training:
the peer's two kernels compiled, ours as `MuonAdamW` runs. Gradients are the same random numbers in each step; handing them
over is not timed. For each compute dtype there is one process; orthogonalization is in that dtype in both programs. The
peer keeps its embeddings in it too (NANOCHAT_DTYPE; float32 is what it takes on a CPU by itself), ours are float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch

VOCAB_SIZE = 8192
HEAD_DIM = 64
SEQ_LEN = 512
NANOCHAT_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
COLUMNS = ("program", "dtype", "ms a step", "parameters", "of these in Muon", "peer / ours")
MARK = "ANSWER "
"""Starts the line in which a process says what it found; compilers print too."""

Stepper = Callable[[], float]
"""Does one optimizer step and returns its seconds."""


def with_gradients(parameters: list[torch.nn.Parameter], step: Callable[[], object]) -> Stepper:
    """Give each parameter its gradient, then time ``step`` alone."""
    generator = torch.Generator().manual_seed(0)
    grads = [(torch.randn(p.shape, generator=generator) * 1e-3).to(p.dtype) for p in parameters]

    def run() -> float:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return run


def ours(depth: int, dtype: str) -> tuple[Stepper, Any, dict[str, int], int]:
    """(one step, a GemmBench of its products, sizes, width)."""
    from firstlight.optim.gemms import optimizer_gemms
    from firstlight.optim.groups import MuonGroup
    from firstlight.optim.schedule import Hyper
    from firstlight.recipes.assemble import assemble
    from firstlight.runtime.context import open_runtime
    from firstlight.runtime.gemm_bench import GemmBench
    from firstlight.train.plan import Horizon, make_plan

    runtime = open_runtime(device="cpu", dtype=dtype, num_threads=torch.get_num_threads()).__enter__()
    plan = make_plan(
        depth, horizon=Horizon("steps", 1_000_000), preset="modern", vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN,
        head_dim=HEAD_DIM, device_batch_size=8, total_batch_size=8 * SEQ_LEN,
    )  # fmt: skip
    parts = assemble(plan, runtime, compiled=True, seed=0, checkpoint_activations=False)
    optimizer = parts.optimizer
    hyper = Hyper(momentum=plan.momentum_end, weight_decay=plan.weight_decay, grad_clip=plan.grad_clip)
    gemms = optimizer_gemms(optimizer.groups, dtype=optimizer.muon_dtype, coefficients=optimizer.muon_coefficients)
    parameters = list(parts.model.parameters())
    in_muon = [p for group in optimizer.groups if isinstance(group, MuonGroup) for _, p in group.parameters]
    sizes = {"all": sum(p.numel() for p in parameters), "muon": sum(p.numel() for p in in_muon)}
    run = with_gradients(parameters, lambda: optimizer.step(hyper))
    return run, GemmBench(gemms, runtime.device), sizes, plan.model.n_embd


def peer(directory: Path, depth: int, width: int) -> tuple[Stepper, dict[str, int]]:
    """(one step, sizes) of the peer's own optimizer for its own model of this width."""
    sys.path.insert(0, str(directory))
    from nanochat.gpt import GPT, GPTConfig  # pyrefly: ignore[missing-import]

    heads = width // HEAD_DIM
    config = GPTConfig(
        sequence_len=SEQ_LEN, vocab_size=VOCAB_SIZE, n_layer=depth, n_head=heads, n_kv_head=heads, n_embd=width
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    optimizer = model.setup_optimizer()
    in_muon = [p for group in optimizer.param_groups if group["kind"] == "muon" for p in group["params"]]
    parameters = list(model.parameters())
    sizes = {"all": sum(p.numel() for p in parameters), "muon": sum(p.numel() for p in in_muon)}
    return with_gradients(parameters, optimizer.step), sizes


def measure(args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """In this process: both step in turns. Seconds of each round and sizes by program, and seconds of the products alone."""
    torch.set_num_threads(args.threads)
    our_step, gemms, our_sizes, width = ours(args.depth, dtype)
    steps, sizes = {"firstlight": our_step}, {"firstlight": our_sizes}
    if args.peer:
        steps["peer"], sizes["peer"] = peer(args.peer, args.depth, width)
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(statistics.median(step() for _ in range(args.steps)))
        gemms.run_round()
    programs = {name: {"rounds_s": times[name], **sizes[name]} for name in steps}
    return {"dtype": dtype, "width": width, "products_s": gemms.step_s(), "programs": programs}


def child(args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """`measure` in a process of its own: the peer reads its dtype from the environment when it is imported."""
    words = ["--child", dtype, "--depth", args.depth, "--rounds", args.rounds, "--steps", args.steps]
    words += ["--threads", args.threads] + (["--peer", args.peer.resolve()] if args.peer else [])
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=False,
        env=os.environ | {"NANOCHAT_DTYPE": NANOCHAT_NAMES[dtype]},
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise SystemExit(f"{dtype}: {done.stderr[-2000:]}")


def tabulate(found: list[dict[str, Any]]) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of the table, and the raw numbers."""
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    for each in found:
        programs, dtype = each["programs"], each["dtype"]
        mine = programs["firstlight"]["rounds_s"]
        for name, program in programs.items():
            step_s = statistics.median(program["rounds_s"])
            over = statistics.median(b / a for a, b in zip(mine, program["rounds_s"], strict=True))
            label = f"{over:.2f}x" if name != "firstlight" else ""
            rows.append([name, dtype, f"{1e3 * step_s:.1f}", program["all"], program["muon"], label])
            figures[f"{name}_{dtype}"] = {"step_s": step_s, **program} | ({"over_ours": over} if label else {})
        rows.append(["firstlight: products", dtype, f"{1e3 * each['products_s']:.1f}", "", "", ""])
        figures[f"products_{dtype}_s"] = each["products_s"]
    return rows, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="DIR", help="a checkout of nanochat, to run beside ours")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", choices=sorted(NANOCHAT_NAMES), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    parser.add_argument("--json", type=Path, help="write the result to this file instead of results/")
    parser.add_argument("--child", choices=sorted(NANOCHAT_NAMES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer and not (args.peer / "nanochat" / "gpt.py").exists():
        parser.error(f"--peer {args.peer}: there is no nanochat/gpt.py in it")
    if min(args.rounds, args.steps, args.threads, args.depth) < 1:
        parser.error("--rounds, --steps, --threads and --depth are 1 or more")
    if args.child:
        print(MARK + json.dumps(measure(args, args.child)), flush=True)
        return

    found = []
    for dtype in args.dtypes:
        print(f"measuring in {dtype}", flush=True)
        found.append(child(args, dtype))
    rows, figures = tabulate(found)
    notes = [
        f"depth {args.depth}, width {found[0]['width']}, {VOCAB_SIZE:,} ids, {args.threads} threads; {args.rounds} rounds "
        f"in turns, each the median of {args.steps} steps; the first three steps are not counted",
        "gradients are random numbers; handing them over is not timed",
        "products: the matrix products of our orthogonalization, alone",
    ]
    if args.peer:
        notes.append(
            "both update the blocks' matrices, head, token embedding, value embeddings of every second layer, and scalars "
            "and gates; the peer's optimizer is compiled as it ships; its embeddings are in the compute dtype, ours in float32"
        )
        notes.append(
            "ours also measures the norm of all gradients, clips by it, and refuses an update that is not finite"
        )
    results.show(COLUMNS, rows)
    path = results.write_result(
        "optim_step", title="One optimizer step on a CPU", command="python benchmarks/optim_step.py --peer NANOCHAT",
        columns=COLUMNS, rows=rows, notes=notes, figures=figures, path=args.json,
    )  # fmt: skip
    print(path.name)


if __name__ == "__main__":
    main()
