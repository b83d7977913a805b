"""How long training takes to reach a score, and the score after a given time, beside a peer's training step.

    python benchmarks/time_to_quality.py DIR --peer NANOCHAT      DIR: parquet files; the last shard is the validation text
    python benchmarks/time_to_quality.py DIR --seconds 190 385 855 --seeds 1337 1338 1339

One definition of the score for everybody: whole documents of the last shard, consecutive windows of T tokens that each
start with BOS, total nats / (ln 2 * bytes).

The peer's two settings are depth 4, 8,192 ids, T = 512, 4.2 M tokens: its own recipe (256 steps of 16,384 tokens; bf16 and
compiled it ends at 1.880 on `wikipedia_en`) and a tuned one (1,024 steps of 4,096 tokens, 1.745). Those scores were measured
once, on the same text with the definition above; here the *time* of its training step is measured, random ids, and
multiplied by the number of steps. Time budgets for ours are 0.25 of the first, 0.45 and all of the second.

Counted for both: steps only (forward, backward, update; ours: waiting for data as well). Not counted for either: training
the tokenizer, tokenising, compiling, scoring.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import results

PEER_SETTINGS = {"recipe": (256, 4, 1.880), "tuned": (1024, 1, 1.745)}
"""Name: optimizer steps, micro-batches of 8 x 512 tokens in a step, bpb at the end."""

PEER_CODE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from nanochat.gpt import GPT, GPTConfig
torch.set_num_threads(int(sys.argv[3]))
config = GPTConfig(sequence_len=512, vocab_size=8192, n_layer=4, n_head=4, n_kv_head=4, n_embd=256)
with torch.device("meta"):
    model = GPT(config)
model.to_empty(device="cpu")
model.init_weights()
optimizer = model.setup_optimizer()
compiled = torch.compile(model, dynamic=False)
x, y = torch.randint(0, 8192, (2, 8, 512))
times = {}
for name, accumulate in json.loads(sys.argv[2]).items():
    times[name] = []
    for i in range(9):
        begun = time.perf_counter()
        for _ in range(accumulate):
            (compiled(x, y) / accumulate).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        if i >= 2:
            times[name].append(time.perf_counter() - begun)
print(json.dumps(times))
"""


def peer_step_seconds(peer: Path, threads: int) -> dict[str, float]:
    settings = json.dumps({name: accumulate for name, (_, accumulate, _) in PEER_SETTINGS.items()})
    done = subprocess.run(
        [sys.executable, "-c", PEER_CODE, str(peer), settings, str(threads)],
        env=os.environ | {"NANOCHAT_DTYPE": "bfloat16"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    times = json.loads(done.stdout.splitlines()[-1])
    return {name: statistics.median(of_setting) for name, of_setting in times.items()}


def train(data: Path, *, steps: int, seed: int, flags: list[str], runs: Path) -> dict[str, float]:
    """One run of ours: steps, seconds of its steps, tokens, and the final score."""
    name = f"steps{steps}-seed{seed}"
    command = [
        sys.executable, "-m", "firstlight", "train", "base", "--data", str(data), "--val", "last", "--run", name,
        "--num-iterations", str(steps), "--seed", str(seed), "--eval-every", "0", "--sample-every", "0",
        "--save-every", "0", "--compile", "on", *flags,
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | {"FIRSTLIGHT_RUNS": str(runs)}, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss_nats" in row]
    record = json.loads((runs / name / "run.json").read_text())
    # The first step compiles: it counts as one of the others.
    later_s = [row["step_time_s"] for row in rows[1:]]
    waited_s = rows[-1]["elapsed_s"] - sum(row["step_time_s"] for row in rows)
    return {
        "steps": steps,
        "elapsed_s": sum(later_s) + statistics.median(later_s) + max(0.0, waited_s),
        "tokens": rows[-1]["tokens_seen"],
        "val_bpb": record["final"]["val_bpb"],
        "val_bpb_stderr": record["final"]["val_bpb_stderr"],
        "num_documents": record["final"].get("num_documents"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("--peer", type=Path, help="checkout of nanochat, whose step is timed")
    parser.add_argument("--seconds", type=float, nargs="+", help="budgets, in place of those from the peer's time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337], help="seeds of the longest budget")
    parser.add_argument("--flags", default="--depth 3", help="flags of `firstlight train base`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    args = parser.parse_args()
    if not args.peer and not args.seconds:
        parser.error("give --peer DIR or --seconds")

    rows, notes, figures = [], [], {}
    budgets = list(args.seconds or [])
    if args.peer:
        step_s = peer_step_seconds(args.peer, args.threads)
        for name, (steps, _, bpb) in PEER_SETTINGS.items():
            figures[f"peer_{name}_s"] = steps * step_s[name]
            rows.append([f"peer, {name}", steps, f"{steps * step_s[name]:,.0f}", "4.19 M", f"{bpb:.3f}", "", ""])
        if not budgets:
            budgets = [0.25 * figures["peer_recipe_s"], 0.45 * figures["peer_tuned_s"], figures["peer_tuned_s"]]
        notes.append("peer: seconds are its measured step times its steps; its scores were measured before")
    flags = args.flags.split()
    with tempfile.TemporaryDirectory() as folder:
        probe = train(args.data, steps=40, seed=1337, flags=flags, runs=Path(folder))
        rate_s = probe["elapsed_s"] / probe["steps"]
        for budget_s in budgets:
            for seed in args.seeds if budget_s == max(budgets) else args.seeds[:1]:
                run = train(args.data, steps=int(budget_s / rate_s), seed=seed, flags=flags, runs=Path(folder))
                share = run["elapsed_s"] / figures["peer_tuned_s"] if args.peer else None
                rows.append([
                    f"firstlight, {budget_s:,.0f} s, seed {seed}", run["steps"], f"{run['elapsed_s']:,.0f}",
                    f"{run['tokens'] / 1e6:.2f} M", f"{run['val_bpb']:.4f}", f"{run['val_bpb_stderr']:.4f}",
                    f"{share:.2f}" if share else "",
                ])  # fmt: skip
                figures[f"bpb_{budget_s:.0f}s_seed{seed}"] = run["val_bpb"]
                figures[f"elapsed_{budget_s:.0f}s_seed{seed}"] = run["elapsed_s"]
                print(rows[-1], flush=True)
    notes.append(f"firstlight: `train base {args.flags}`, each budget a run of its own with its own warm-down")
    results.write_result(
        "time_to_quality",
        title="Time to quality",
        command="python benchmarks/time_to_quality.py DIR --peer NANOCHAT",
        columns=["run", "steps", "seconds of steps", "tokens", "val bpb", "standard error", "time against peer, tuned"],
        rows=rows, notes=notes, figures=figures, path=args.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
