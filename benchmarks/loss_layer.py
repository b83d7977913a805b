"""Time and memory of the loss layer, against its three matrix products alone and against whole logits.

    python benchmarks/loss_layer.py                     a table, benchmarks/results/loss_layer.json and BENCHMARKS.md
    python benchmarks/loss_layer.py --vocab 8192 --dtype bf16 --threads 1 --rounds 9

Variants, forward and backward of the summed loss of N tokens:
    products        z = h W^T, dh = dz W, dW = dz^T h at the size of a chunk, N / R times: the floor
    whole           logits of all N tokens, cap and cross-entropy in float32, autograd (the usual expression)
    whole+compile   the same through torch.compile
    chunked         ours, its kernel of torch's operations
    chunked+compile the same through torch.compile
    chunked+native  ours as it trains on a CPU: its kernel in native code

Each case runs in a process of its own; its variants take turns, and the best round counts. `cpu_s` is the processor time
of the best round: on a machine with neighbours it is steadier than the wall. Memory is the growth of the process's peak
over its size before the call (on a GPU: torch's peak of allocated bytes), gradients of x and W included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import results
import torch

from firstlight.train.loss import default_chunk_rows, summed_cross_entropy
from firstlight.train.native.loss import why_not_native_loss

SOFTCAP = 15.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = ("products", "whole", "whole+compile", "chunked", "chunked+compile", "chunked+native")


def whole_logits(x_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, dtype: torch.dtype):
    z_NV = torch.nn.functional.linear(x_ND.to(dtype), weight_VD.to(dtype)).float()
    return torch.nn.functional.cross_entropy(SOFTCAP * torch.tanh(z_NV / SOFTCAP), targets_N, reduction="sum")


def make_variant(name: str, *, tokens: int, width: int, vocab: int, dtype: torch.dtype, rows: int, device: str):
    """A function of no arguments that does one forward and backward pass."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, device=device) * 0.05).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), device=device)
    if name == "products":
        h, w = x.detach()[:rows], weight.detach().to(dtype)
        z = torch.zeros(rows, vocab, dtype=dtype, device=device)
        dh, dw = torch.empty_like(h), torch.empty_like(w)

        def run() -> None:
            for _ in range(tokens // rows):
                torch.mm(h, w.T, out=z)
                torch.mm(z, w, out=dh)
                torch.mm(z.T, h, out=dw)

        return run
    if name.startswith("whole"):
        loss_of = torch.compile(whole_logits, dynamic=False) if name.endswith("compile") else whole_logits

        def run() -> None:
            x.grad = weight.grad = None
            loss_of(x, weight, targets, dtype).backward()

        return run

    def run() -> None:
        x.grad = weight.grad = None
        compiled, native = name.endswith("compile"), name.endswith("native")
        summed_cross_entropy(
            x[None], weight, targets[None], softcap=SOFTCAP, compute_dtype=dtype, chunk_rows=rows, compiled=compiled,
            native=native,
        ).backward()  # fmt: skip

    return run


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: memory is measured on Linux only")


def extra_memory_bytes(run, device: str) -> int:
    if device != "cpu":
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    run()
    return peak_bytes() - before


def time_case(case: dict, *, rounds: int, device: str) -> dict:
    """Best wall and processor seconds of every variant, the variants taking turns."""
    runs = {name: make_variant(name, **case) for name in VARIANTS}
    best = {name: {"wall_s": float("inf"), "cpu_s": float("inf")} for name in VARIANTS}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
            if i > 0:  # The first round compiles.
                best[name]["wall_s"] = min(best[name]["wall_s"], wall_s)
                best[name]["cpu_s"] = min(best[name]["cpu_s"], cpu_s)
    return best


def memory_of(name: str, case: dict, device: str) -> int:
    run = make_variant(name, **case)
    if name.endswith("compile"):
        # Compile on a small case first, so that the compiler's own memory is not counted.
        small = case | {"tokens": 2 * case["rows"]}
        make_variant(name, **small)()
    return extra_memory_bytes(run, device)


def child(arguments: list[str]) -> dict:
    output = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if output.returncode:
        raise RuntimeError(output.stderr[-2000:])
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=sorted(DTYPES))
    parser.add_argument("--rows", type=int, help="rows of a chunk; default: the layer's own rule")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the result to this file instead of results/")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for dtype in args.dtype:
        if (reason := why_not_native_loss(device_type=args.device, dtype=DTYPES[dtype])) is not None:
            print(f"chunked+native is torch's operations in {dtype}: {reason}", file=sys.stderr)
    torch.set_num_threads(args.threads)

    if args.only:
        rows = min(args.tokens, args.rows or default_chunk_rows(args.vocab[0]))
        case = {"tokens": args.tokens, "width": args.width, "vocab": args.vocab[0], "dtype": DTYPES[args.dtype[0]]}
        case |= {"rows": rows, "device": args.device}
        if args.only == "time":
            print(json.dumps(time_case(case, rounds=args.rounds, device=args.device)))
        else:
            print(json.dumps({"bytes": memory_of(args.only, case, args.device)}))
        return

    found = []
    print(f"N={args.tokens} tokens, D={args.width}, {args.threads} threads, {args.device}, torch {torch.__version__}")
    print(f"{'V':>6} {'dtype':5} {'variant':16} {'wall ms':>9} {'cpu ms':>9} {'x products (cpu)':>17} {'extra MB':>9}")
    for vocab in args.vocab:
        for dtype in args.dtype:
            common = ["--tokens", args.tokens, "--width", args.width, "--vocab", vocab, "--dtype", dtype]
            common += ["--threads", args.threads, "--rounds", args.rounds, "--device", args.device]
            common = [str(a) for a in common] + (["--rows", str(args.rows)] if args.rows else [])
            times = child([*common, "--only", "time"])
            for name in VARIANTS:
                memory = 0 if name == "products" else child([*common, "--only", name])["bytes"]
                ratio = times[name]["cpu_s"] / times["products"]["cpu_s"]
                row = {"vocab": vocab, "dtype": dtype, "variant": name, **times[name], "x_products": ratio}
                found.append(row | {"extra_bytes": memory, "rows": args.rows or default_chunk_rows(vocab)})
                print(
                    f"{vocab:6} {dtype:5} {name:16} {times[name]['wall_s'] * 1e3:9.1f} {times[name]['cpu_s'] * 1e3:9.1f}"
                    f" {ratio:17.2f} {memory / 1e6:9.1f}",
                    flush=True,
                )
    write(found, args)


def write(found: list[dict], args: argparse.Namespace) -> None:
    """The table of ratios and memory, a row for each vocabulary and dtype, in the common form."""
    shown = [name for name in reversed(VARIANTS) if name != "products"]
    rows = []
    for first in (each for each in found if each["variant"] == "products"):
        same = {e["variant"]: e for e in found if (e["vocab"], e["dtype"]) == (first["vocab"], first["dtype"])}
        cells = [f"{same[name]['x_products']:.2f}x, {same[name]['extra_bytes'] / 1e6:,.0f} MB" for name in shown]
        rows.append([f"{first['vocab']:,} {first['dtype']}", f"{first['cpu_s'] * 1e3:.1f}", *cells])
    results.write_result(
        "loss_layer",
        title="Loss layer: time against its three bare matrix products, and extra memory",
        command=f"python benchmarks/loss_layer.py --threads {args.threads}",
        columns=["V, dtype", "products alone, ms", *shown],
        rows=rows,
        notes=[
            f"N = {args.tokens:,} tokens, D = {args.width}, {args.threads} threads, {args.device}; processor time of the "
            f"best of {args.rounds} rounds in turns.",
            "`chunked` is firstlight's, `whole` makes the logits of all tokens at once and leaves the rest to autograd.",
        ],
        figures={f"{each['vocab']}_{each['dtype']}_{each['variant']}": each for each in found},
        device=args.device,
        path=args.json,
    )


if __name__ == "__main__":
    main()
