"""Kill a run with SIGKILL at random moments, resume it each time, and compare it bit by bit with one that was left alone.

    python benchmarks/kill_and_resume.py --kills 3 -- --data texts/ --depth 4 --num-iterations 300 --val last

Everything after ``--`` goes to `firstlight train base`. Prints what was done and one JSON object; exit code 1 where a weight,
a number of the optimizer state, or a loss differs. Runs go to a temporary folder unless ``--runs-dir`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def command(name: str, flags: list[str], *, resume: bool) -> list[str]:
    return [
        sys.executable,
        "-m",
        "firstlight",
        "train",
        "base",
        "--run",
        name,
        *(["--resume"] if resume else []),
        *flags,
    ]


def last_step(run_dir: Path) -> int:
    """Steps in metrics.jsonl so far."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return 0
    steps = [row["step"] for row in map(json.loads, lines[:-1]) if row["kind"] == "train"]
    return max(steps, default=-1) + 1


def losses(run_dir: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss_nats"]) for row in rows if row["kind"] == "train"]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = max((run_dir / "checkpoints").glob("step_*"))
    files = sorted(newest.glob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path)
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    flags = [flag for flag in arguments.flags if flag != "--"]
    runs_dir = arguments.runs_dir or Path(tempfile.mkdtemp(prefix="firstlight-kill-"))
    environment = {**os.environ, "FIRSTLIGHT_RUNS": str(runs_dir)}
    draw = random.Random(arguments.seed)

    started_s = time.monotonic()
    subprocess.run(command("straight", flags, resume=False), env=environment, check=True, stdout=subprocess.DEVNULL)
    straight_s = time.monotonic() - started_s
    num_steps = last_step(runs_dir / "straight")
    print(f"straight: {num_steps} steps in {straight_s:.0f} s")

    killed_at: list[int] = []
    for target in sorted(draw.randrange(1, num_steps) for _ in range(arguments.kills)):
        process = subprocess.Popen(
            command("killed", flags, resume=bool(killed_at)), env=environment, stdout=subprocess.DEVNULL
        )
        # Until the drawn step, and then some part of a second, so that kills fall anywhere in a step or a save.
        while process.poll() is None and last_step(runs_dir / "killed") < target:
            time.sleep(0.02)
        time.sleep(draw.random())
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(last_step(runs_dir / "killed"))
        print(f"killed after {killed_at[-1]} steps")
    subprocess.run(command("killed", flags, resume=True), env=environment, check=True, stdout=subprocess.DEVNULL)

    one, other = tensors(runs_dir / "straight"), tensors(runs_dir / "killed")
    different = [name for name in one if name not in other or not torch.equal(one[name], other[name])]
    same_losses = losses(runs_dir / "straight") == losses(runs_dir / "killed")
    result = {
        "num_steps": num_steps,
        "killed_after_steps": killed_at,
        "num_tensors": len(one),
        "num_different_tensors": len(different) + len(set(other) - set(one)),
        "losses_equal": same_losses,
        "num_losses": len(losses(runs_dir / "killed")),
    }
    print(json.dumps(result))
    return 0 if same_losses and not result["num_different_tensors"] else 1


if __name__ == "__main__":
    sys.exit(main())
