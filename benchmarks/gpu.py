"""Training on one GPU: tokens/s, MFU and memory at several depths, in bf16 and with fp8, beside another program.

    python benchmarks/gpu.py                          depths 12, 20, 26; T = 2048, 32,768 ids
    python benchmarks/gpu.py --peer NANOCHAT_DIR      and nanochat's model and optimizer, from a checkout of it
    python benchmarks/gpu.py --device cpu --depths 1 --seq-len 64 --vocab-size 512 --batches 2     a trial without a GPU

One step is forward, backward and optimizer on one micro-batch of random ids, compiled; a row's tokens/s is the median of
--rounds turns of --steps steps. Each row runs in a process of its own, with the largest of --batches that fits; one that
fits nowhere, or fails, has its reason in the notes and costs no other row. Where there is no NVIDIA GPU the table says
"not measured".

MFU: each program's model FLOPs (attention not halved, windows counted as windows) over the bf16 peak of the data sheet, for
fp8 too, so that rows can be compared. Memory: the peak that torch has reserved.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch

COLUMNS = ("program", "depth", "dtype", "rows a step", "tokens/s", "MFU", "memory GiB", "ours / peer")
ROW_TIMEOUT_S = 900
MARK = "ROW "
"""Starts the line in which a row's process says what it found; compilers print too."""


def device_peak_flops(device: torch.device) -> float:
    from firstlight.runtime import hardware

    return hardware.device_peak(device, torch.bfloat16).flops_per_s


def our_step(case: dict[str, Any], device: str) -> tuple[Callable[[], None], float, list[str]]:
    """One step of ours, its FLOPs a token, and notes. Preset modern."""
    from firstlight.data.batch import Batch, Position
    from firstlight.model.fp8 import check_fp8
    from firstlight.optim.schedule import Hyper
    from firstlight.recipes.assemble import assemble
    from firstlight.runtime.context import open_runtime
    from firstlight.train.plan import Horizon, make_plan
    from firstlight.train.step import train_step

    runtime = open_runtime(device=device, dtype="bf16").__enter__()
    if case["fp8"] and device != "cpu":
        check_fp8(runtime.device, runtime.compute_dtype)
    plan = make_plan(
        case["depth"], horizon=Horizon("steps", 1_000_000), preset="modern", vocab_size=case["vocab_size"],
        seq_len=case["seq_len"], device_batch_size=case["rows"], total_batch_size=case["rows"] * case["seq_len"],
    )  # fmt: skip
    parts = assemble(plan, runtime, compiled=True, seed=0, checkpoint_activations=False, fp8=case["fp8"])
    ids = torch.randint(case["vocab_size"], (case["rows"], case["seq_len"] + 1), device=runtime.device)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), Position())
    hyper = Hyper(lr_multiplier=1e-3)

    def step() -> None:
        stats = train_step(
            parts.model, parts.optimizer, [batch], runtime, hyper, hidden=parts.hidden, compiled_loss=parts.compiled
        )
        assert stats.skipped is None, stats.skipped

    return step, plan.flops_per_token, parts.notes


def peer_step(case: dict[str, Any], device: str) -> tuple[Callable[[], None], float, list[str]]:
    """One step of the peer's model and optimizer, as its base_train sets them up."""
    sys.path.insert(0, case["peer"])
    from nanochat.gpt import GPT, GPTConfig  # pyrefly: ignore[missing-import]

    width = -(-64 * case["depth"] // 128) * 128
    heads = width // 128
    with torch.device("meta"):
        model = GPT(
            GPTConfig(
                sequence_len=case["seq_len"], vocab_size=case["vocab_size"], n_layer=case["depth"], n_head=heads,
                n_kv_head=heads, n_embd=width,
            )
        )  # fmt: skip
    model.to_empty(device=device)
    model.init_weights()
    notes = []
    if case["fp8"]:
        from nanochat.fp8 import Float8LinearConfig, convert_to_float8_training  # pyrefly: ignore[missing-import]

        def is_taken(module: torch.nn.Module, _: str) -> bool:
            if not isinstance(module, torch.nn.Linear):
                return False
            sides = module.in_features, module.out_features
            return min(sides) >= 128 and not any(side % 16 for side in sides)

        convert_to_float8_training(
            model, config=Float8LinearConfig.from_recipe_name("tensorwise"), module_filter_fn=is_taken
        )
    try:
        from nanochat.flash_attention import HAS_FA3  # pyrefly: ignore[missing-import]

        notes.append("peer: flash attention 3" if HAS_FA3 else "peer: no flash attention 3 here, so torch's attention")
    except ImportError:
        pass
    flops = float(model.estimate_flops())
    optimizer = model.setup_optimizer()
    compiled = torch.compile(model, dynamic=False)
    ids = torch.randint(case["vocab_size"], (case["rows"], case["seq_len"] + 1), device=device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        loss = compiled(inputs, targets)
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()

    return step, flops, notes


def measure(case: dict[str, Any], device: str) -> dict[str, Any]:
    """One row, in this process: its figures, or ``oom``."""
    is_gpu = device != "cpu"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    try:
        step, flops_per_token, notes = (our_step if case["program"] == "ours" else peer_step)(case, device)
        for _ in range(3):
            step()
        rates = []
        for _ in range(case["rounds"]):
            if is_gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(case["steps"]):
                step()
            if is_gpu:
                torch.cuda.synchronize()
            rates.append(case["steps"] * case["rows"] * case["seq_len"] / (time.perf_counter() - start))
    except torch.OutOfMemoryError:
        return {"oom": True}
    tokens_per_s = statistics.median(rates)
    return {
        "tokens_per_s": tokens_per_s,
        "mfu": tokens_per_s * flops_per_token / device_peak_flops(torch.device(device)),
        "memory_bytes": torch.cuda.max_memory_reserved() if is_gpu else None,
        "flops_per_token": flops_per_token,
        "notes": notes,
    }


def run_row(case: dict[str, Any], device: str, home: Path) -> dict[str, Any]:
    """One row in a process of its own: its figures, ``oom``, or ``failed`` with the reason."""
    environment = os.environ | {"NANOCHAT_BASE_DIR": str(home), "NANOCHAT_DTYPE": "bfloat16"}
    command = [sys.executable, __file__, "--device", device, "--row", json.dumps(case)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ROW_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end in {ROW_TIMEOUT_S} s"}
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode == 0 and found:
        return json.loads(found[-1])
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    text = lines[-1] if lines else f"exit code {done.returncode}"
    return {"oom": True} if "out of memory" in done.stderr.lower() else {"failed": text[:200]}


def largest_that_fits(case: dict[str, Any], batches: list[int], device: str, home: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"failed": f"out of memory with {batches[-1]} rows"}
    for rows in batches:
        tried = run_row(case | {"rows": rows}, device, home)
        if not tried.get("oom"):
            return tried | {"rows": rows}
    return found


def why_no_device(device: str) -> str | None:
    if device == "cpu" or torch.cuda.is_available():
        return None
    return f"no NVIDIA GPU was found by torch {torch.__version__}"


def ints(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def cells(case: dict[str, Any], found: dict[str, Any], peer: dict[str, Any] | None) -> list[results.Cell]:
    """A row of the table; None stands for what was not measured."""
    name = "fp8" if case["fp8"] else "bf16"
    head: list[results.Cell] = [case["program"], case["depth"], name]
    if "tokens_per_s" not in found:
        return head + [None] * 5
    memory = found["memory_bytes"]
    ratio = None
    if peer and "tokens_per_s" in peer:
        ratio = f"{found['tokens_per_s'] / peer['tokens_per_s']:.2f}x"
    return [
        *head, found["rows"], round(found["tokens_per_s"]), f"{found['mfu']:.3f}",
        round(memory / 2**30, 1) if memory else None, ratio,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat to run beside")
    parser.add_argument("--json", type=Path, help="write the result here instead of benchmarks/results/gpu.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps of one turn")
    parser.add_argument("--depths", type=ints, default=[12, 20, 26])
    parser.add_argument("--batches", type=ints, default=[64, 32, 16, 8, 4, 2, 1], help="rows to try, largest first")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        sys.stdout.write(f"\n{MARK}{json.dumps(measure(json.loads(args.row), args.device))}\n")
        return

    missing = why_no_device(args.device)
    notes: list[str] = []
    if missing:
        notes.append(f"Not measured: {missing}.")
        sys.stdout.write(notes[0] + "\n")
    rows: list[list[results.Cell]] = []
    figures: dict[str, Any] = {}
    programs = ["peer", "ours"] if args.peer else ["ours"]
    sizes = {"seq_len": args.seq_len, "vocab_size": args.vocab_size, "rounds": args.rounds, "steps": args.steps}
    with tempfile.TemporaryDirectory() as home:
        for depth in args.depths:
            for fp8 in (False, True):
                peer = None
                for program in programs:
                    case = {"program": program, "depth": depth, "fp8": fp8, "peer": str(args.peer or ""), **sizes}
                    found = {} if missing else largest_that_fits(case, args.batches, args.device, Path(home))
                    name = f"{program} depth {depth} {'fp8' if fp8 else 'bf16'}"
                    if "failed" in found:
                        notes.append(f"{name}: {found['failed']}.")
                    notes += [note for note in found.get("notes", []) if note not in notes]
                    figures |= {f"{name}: {k}": v for k, v in found.items() if isinstance(v, int | float)}
                    rows.append(cells(case, found, peer))
                    peer = found if program == "peer" else peer
                    sys.stdout.write("  ".join(results.cell(value) for value in rows[-1]) + "\n")
                    sys.stdout.flush()
    notes.append(
        f"T = {args.seq_len:,}, {args.vocab_size:,} ids, random; preset modern; one micro-batch a step, compiled, with the "
        f"optimizer. Median of {args.rounds} turns of {args.steps} steps."
    )
    path = results.write_result(
        "gpu", title="Training on one GPU", command="python benchmarks/gpu.py --peer DIR", columns=COLUMNS, rows=rows,
        notes=notes, figures=figures, device="cpu" if missing else args.device, path=args.json,
    )  # fmt: skip
    sys.stdout.write("\n".join(notes) + f"\n{path}\n")


if __name__ == "__main__":
    main()
