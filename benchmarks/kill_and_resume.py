"""Kill a run with SIGKILL at random moments, half of them in the middle of a save, and compare where it ends bit by bit.

    python benchmarks/kill_and_resume.py --kills 100                      a tiny model, on 1 and 2 processes by turns
    python benchmarks/kill_and_resume.py --kills 3 --data texts/ --depth 4 --num-iterations 300 --world-sizes 1

A life is one run to its end with a dozen kills on the way; it is resumed after each, with another random interval of saving.
At its end every weight, every number of the optimizer state and every loss must equal those of a run on as many processes
that was left alone. Prints a line a life and one JSON object; exit code 1 where anything differs, or a resume does not start.

Processes are forked from a server that has torch loaded, so a start costs a fraction of a second. Runs go to a temporary
folder unless ``--runs-dir`` is given.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from firstlight.recipes.settings import BaseSettings

KILLS_A_LIFE = 12
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "river",
    "stone",
    "light",
    "wind",
    "saw",
    "found",
    "lost",
    "kept",
    "made",
    "gave",
    "under",
    "over",
    "beside",
    "small",
    "old",
    "green",
    "quiet",
    "quick",
    "then",
    "because",
    "while",
    "never",
    "always",
    "slowly",
    "again",
    "and",
    "but",
    "so",
    "when",
    "where",
]


@dataclass(frozen=True)
class Folders:
    """Where the cache and the runs of all jobs are."""

    cache: Path
    runs: Path


def made_up_texts(folder: Path, *, documents_per_shard: int = 40) -> Path:
    """Five shards of sentences of common words; the last is small, for validation."""
    folder.mkdir(parents=True)
    for shard, num in enumerate((*[documents_per_shard] * 4, 8)):
        draw = random.Random(shard)
        texts = [
            ". ".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(draw.randint(1, 9))) + "."
            for _ in range(num)
        ]
        (folder / f"part_{shard}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


class Job:
    """The processes of one launch of `recipes.base.train_base`, by rank; what each prints goes to a file."""

    def __init__(
        self, folders: Folders, settings: BaseSettings, world_size: int, *, given: frozenset[str] = frozenset()
    ) -> None:
        """given: settings that a user would have written, on a resumed run."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "firstlight.recipes.base"])
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.run_dir = folders.runs / (settings.run or "")
        self.outputs = [folders.runs / f"{settings.run}-rank{rank}.out" for rank in range(world_size)]
        self.processes: list[Any] = []
        self.started_unix_s = time.time()
        for rank, output in enumerate(self.outputs):
            output.unlink(missing_ok=True)
            process = context.Process(
                target=_rank, args=(rank, world_size, port, folders, settings, given, output), daemon=True
            )
            process.start()
            self.processes.append(process)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: int, *ranks: int) -> None:
        """To these ranks, or to all; those that have ended take none."""
        for rank in ranks or range(len(self.processes)):
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid, number)

    def wait(self, timeout_s: float) -> list[int | None]:
        """Exit codes by rank; None for one that did not end in time (it is killed then)."""
        until_s = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(timeout=max(0.0, until_s - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
            process.close()
        return codes

    def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = 60) -> bool:
        """Poll fast until it is true (True), or the job or the time ends (False)."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s or not all(process.is_alive() for process in self.processes):
                return False
            time.sleep(0.002)
        return True

    def said(self, num_characters: int = 1500) -> str:
        """The end of what each rank printed."""
        return "\n".join(
            f"--- rank {rank}\n{output.read_text(errors='replace')[-num_characters:] if output.exists() else ''}"
            for rank, output in enumerate(self.outputs)
        )


def _rank(
    rank: int,
    world_size: int,
    port: int,
    folders: Folders,
    settings: BaseSettings,
    given: frozenset[str],
    output: Path,
) -> None:
    """One process of a job: what `firstlight train base` does under torchrun. How fast the machine is, is not measured."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", FIRSTLIGHT_CACHE=str(folders.cache),
        FIRSTLIGHT_RUNS=str(folders.runs),
    )  # fmt: skip
    from firstlight.errors import FirstlightError
    from firstlight.recipes import base
    from firstlight.runtime import hardware, precision

    peak = hardware.Peak(1e11, "not measured here")
    hardware.device_peak = lambda *_, **__: peak
    precision.matmul_flops_per_s = lambda *_, **__: 1e11
    try:
        base.train_base(settings, given=given)
    except FirstlightError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


# What a run has left, read without firstlight's own readers.


def train_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of updates in metrics.jsonl; a last line that is not whole is passed over."""
    try:
        text = (run_dir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    rows = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if row["kind"] == "train"]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss in nats) of each update."""
    return [(row["step"], row["loss_nats"]) for row in train_rows(run_dir)]


def num_steps_done(run_dir: Path, *, since_unix_s: float = 0.0) -> int:
    """Updates in the metrics; those of one launch where its start is given: a launch before may have come further."""
    return max((row["step"] + 1 for row in train_rows(run_dir) if row["time_unix_s"] >= since_unix_s), default=0)


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def is_saving(run_dir: Path, *, since_unix_s: float) -> bool:
    """Whether a checkpoint that was begun since then is half written at this moment; a kill before leaves half a one too."""
    folder = run_dir / "checkpoints"
    with suppress(OSError):
        return any(
            name.startswith(".tmp-") and (folder / name).stat().st_mtime >= since_unix_s for name in names_in(folder)
        )
    return False


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint; 0 where there is none."""
    names = [name for name in names_in(run_dir / "checkpoints") if name.startswith("step_")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the newest checkpoint, flat; pieces that ranks have written are put together."""
    folder = run_dir / "checkpoints" / f"step_{newest_step(run_dir):08d}"
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        kind = re.split(r"[-.]", file.name)[0]
        for name, tensor in load_file(file).items():
            part = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", name)
            whole, start = (part[1], int(part[2])) if part else (name, 0)
            pieces.setdefault(f"{kind}:{whole}", {})[start] = tensor.flatten()
    return {name: torch.cat([found[start] for start in sorted(found)]) for name, found in pieces.items()}


@dataclass(frozen=True)
class Ending:
    """Where a run has ended: its tensors and its losses."""

    tensors: Mapping[str, torch.Tensor]
    losses: list[tuple[int, float]]

    @classmethod
    def of(cls, run_dir: Path) -> Ending:
        return cls(tensors(run_dir), losses(run_dir))

    def differences(self, other: Ending) -> list[str]:
        """What is not the same in every bit, in words."""
        found = [f"only one of them has {name}" for name in self.tensors.keys() ^ other.tensors.keys()]
        found += [
            f"{name} differs"
            for name in self.tensors.keys() & other.tensors.keys()
            if not torch.equal(self.tensors[name], other.tensors[name])
        ]
        return found + ([] if self.losses == other.losses else ["the losses differ"])

    def distance(self, other: Ending) -> tuple[float, float]:
        """(norm of the difference of all weights / their norm, largest difference of two losses in nats)."""
        names = [name for name in self.tensors if name.startswith("model")]
        mine, others = (torch.cat([ending.tensors[name] for name in names]).double() for ending in (self, other))
        apart = max(
            (abs(a - b) for (_, a), (_, b) in zip(self.losses, other.losses, strict=False)), default=float("inf")
        )
        same_steps = [step for step, _ in self.losses] == [step for step, _ in other.losses]
        return float((mine - others).norm() / mine.norm()), apart if same_steps else float("inf")


GIVEN = frozenset({"run", "resume", "save_every"})


def straight(folders: Folders, settings: BaseSettings, world_size: int) -> Ending:
    """The ending of a run that is left alone. Raises RuntimeError, with what it said, where it fails."""
    job = Job(folders, replace(settings, run=f"straight{world_size}"), world_size)
    codes = job.wait(timeout_s=3600)
    if codes != [0] * world_size:
        raise RuntimeError(f"the run that was left alone ended with {codes}\n{job.said()}")
    return Ending.of(job.run_dir)


@dataclass
class Tally:
    """What was done and what was found."""

    num_kills: int = 0
    num_in_saves: int = 0
    num_launches: int = 0
    steps_lost: int = 0
    most_steps_lost: int = 0
    problems: int = 0


def live(
    folders: Folders, settings: BaseSettings, world_size: int, draw: random.Random, *, kills: int, tally: Tally
) -> Path:
    """One run to its end with so many kills, every second one in a save; returns its folder."""
    run_dir = folders.runs / (settings.run or "")
    last = settings.num_iterations or 0
    for number in range(kills):
        every = draw.randint(1, 3)
        launched = replace(settings, save_every=every, resume=number > 0)
        begin = newest_step(run_dir)
        job = Job(folders, launched, world_size, given=GIVEN if number else frozenset())
        tally.num_launches += 1
        # Spread over what is left, so that the last kill still finds the run on its way.
        target = begin + draw.randint(0, max(0, (last - 2 - begin) // (kills - number)))
        since_unix_s = job.started_unix_s
        job.wait_until(lambda at=target, since=since_unix_s: num_steps_done(run_dir, since_unix_s=since) > at)
        if number % 2:
            tally.num_in_saves += job.wait_until(lambda since=since_unix_s: is_saving(run_dir, since_unix_s=since))
        else:
            time.sleep(draw.random() / 20)
        done = num_steps_done(run_dir)
        job.signal(signal.SIGKILL)
        codes = job.wait(timeout_s=20)
        if any(code != -signal.SIGKILL for code in codes):
            # It came to its end, or failed, before the kill.
            if any(code != 0 for code in codes if code != -signal.SIGKILL):
                print(f"a launch ended by itself with {codes}\n{job.said()}", file=sys.stderr)
                tally.problems += 1
            continue
        tally.num_kills += 1
        lost = max(0, done - newest_step(run_dir))
        tally.steps_lost += lost
        tally.most_steps_lost = max(tally.most_steps_lost, lost)
    job = Job(folders, replace(settings, resume=kills > 0), world_size, given=GIVEN if kills else frozenset())
    tally.num_launches += 1
    codes = job.wait(timeout_s=3600)
    if codes != [0] * world_size:
        print(f"the last resume ended with {codes}\n{job.said()}", file=sys.stderr)
        tally.problems += 1
    return run_dir


def tiny(data: Path) -> BaseSettings:
    """Settings of a run of a second or two: one layer, 40 steps of 12 rows, which 1, 2, 3 and 4 processes can share."""
    return BaseSettings(
        data=str(data), depth=1, vocab_size=300, head_dim=32, max_seq_len=64, total_batch_size=64 * 12, num_iterations=40,
        val="last", dtype="fp32", device="cpu", compile="off", threads=1, workers=0, save_every=4, eval_every=0, sample_every=0,
        eval_documents=4,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path)
    parser.add_argument(
        "--data", type=Path, help="text to train on, with --depth and --num-iterations; made up if not given"
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--num-iterations", type=int, default=300)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    tally = Tally()
    different: list[str] = []
    started_s = time.monotonic()
    with ExitStack() as stack:
        root = asked.runs_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="firstlight-kill-")))
        folders = Folders(cache=root / "cache", runs=root / "runs")
        folders.runs.mkdir(parents=True, exist_ok=True)
        settings = tiny(asked.data or made_up_texts(root / "texts"))
        if asked.data is not None:
            settings = BaseSettings(
                data=str(asked.data), depth=asked.depth, num_iterations=asked.num_iterations, val="last", dtype="fp32",
                device="cpu", compile="off", threads=1, eval_every=0, sample_every=0,
            )  # fmt: skip
        references = {size: straight(folders, settings, size) for size in asked.world_sizes}
        lives = 0
        while tally.num_kills < asked.kills and tally.problems < 3:
            size = asked.world_sizes[lives % len(asked.world_sizes)]
            name = f"life{lives}"
            kills = min(KILLS_A_LIFE, asked.kills - tally.num_kills)
            run_dir = live(folders, replace(settings, run=name), size, draw, kills=kills, tally=tally)
            found = references[size].differences(Ending.of(run_dir)) if not tally.problems else ["it did not end"]
            lives += 1
            different += [f"{name}: {what}" for what in found]
            print(f"{name} on {size}: {tally.num_kills} kills so far, {len(found)} differences", file=sys.stderr)
            if not found:
                shutil.rmtree(run_dir)
    result = {
        "kills": tally.num_kills,
        "kills_in_saves": tally.num_in_saves,
        "launches": tally.num_launches,
        "lives": lives,
        "world_sizes": asked.world_sizes,
        "steps_a_life": settings.num_iterations,
        "num_tensors": {size: len(ending.tensors) for size, ending in references.items()},
        "steps_lost": tally.steps_lost,
        "most_steps_lost_by_one_kill": tally.most_steps_lost,
        "launches_that_failed": tally.problems,
        "differences": different[:20],
        "minutes": round((time.monotonic() - started_s) / 60, 2),
    }
    print(json.dumps(result))
    return 0 if not different and not tally.problems else 1


if __name__ == "__main__":
    sys.exit(main())
