"""A tiny real job in processes of its own, which a test may kill, signal, damage and start again.

`launch` runs the recipe of a base run (`recipes.base.train_base`) as torchrun would: one process a rank, forked from a
server that has torch loaded, so a start costs a fraction of a second. What each rank prints goes to a file. What a run left
is read back without firstlight's own readers: plain JSON lines and safetensors.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ranks import free_port, server, set_place
from safetensors.torch import load_file
from words import WORDS

from firstlight.recipes.settings import BaseSettings, RunSettings

NUM_STEPS = 20
NUM_ROWS = 12
"""Rows of a step: a number that 1, 2, 3 and 4 processes can share."""


@dataclass(frozen=True)
class Place:
    """Folders of a job: its text, its cache (shared by all jobs), its runs."""

    texts: Path
    cache: Path
    runs: Path


TINY = BaseSettings(
    depth=1, vocab_size=300, head_dim=32, max_seq_len=64, total_batch_size=64 * NUM_ROWS, num_iterations=NUM_STEPS, val="last",
    dtype="fp32", device="cpu", compile="off", threads=1, workers=0, save_every=5, eval_every=0, sample_every=0,
    eval_documents=4,
)  # fmt: skip


def write_texts(folder: Path) -> Path:
    """Made-up text: four shards to learn from, about one epoch and a half in a run of TINY, and a small one to score."""
    folder.mkdir(parents=True)
    for shard, num in enumerate((17, 20, 13, 18, 6)):
        draw = random.Random(shard)
        texts = [
            ". ".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(draw.randint(1, 9))) + "."
            for _ in range(num)
        ]
        (folder / f"part_{shard}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


class Launch:
    """The processes of one launch, by rank."""

    def __init__(self, processes: Sequence[Any], outputs: Sequence[Path]) -> None:
        self.processes, self.outputs = processes, outputs
        self.started_s = time.monotonic()
        self.started_unix_s = time.time()

    def signal(self, rank: int, number: int = signal.SIGTERM) -> None:
        """Send a signal to one rank; one that has ended already takes none."""
        if self.processes[rank].is_alive():
            os.kill(self.processes[rank].pid, number)

    def kill(self, *ranks: int) -> None:
        """SIGKILL to these ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            self.signal(rank, signal.SIGKILL)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, timeout_s: float = 120) -> list[int]:
        """Exit codes by rank; minus the signal's number where one ended the process.

        Raises AssertionError, with what every rank printed, where one is still running after ``timeout_s``.
        """
        until_s = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(timeout=max(0.0, until_s - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        if late:
            self.kill()
            raise AssertionError(f"ranks {late} did not end within {timeout_s} s\n{self.everything()}")
        return [process.exitcode for process in self.processes]

    def output(self, rank: int = 0) -> str:
        """What a rank printed so far, warnings and errors included."""
        return self.outputs[rank].read_text(errors="replace") if self.outputs[rank].exists() else ""

    def everything(self) -> str:
        """What all ranks printed so far, for the message of a failed test."""
        return "\n".join(f"--- rank {rank}\n{self.output(rank)}" for rank in range(len(self.outputs)))


def launch(
    place: Place,
    settings: RunSettings,
    world_size: int = 1,
    *,
    given: frozenset[str] | None = None,
    fault: Callable[..., None] | None = None,
    fault_args: tuple[Any, ...] = (),
) -> Launch:
    """Start ``settings`` on ``world_size`` processes.

    given: settings that a user would have written; those that differ from the defaults where not given.
    fault: ``fault(rank, *fault_args)`` is called in each process before the recipe; see `faults`.
    """
    place.runs.mkdir(parents=True, exist_ok=True)
    if isinstance(settings, BaseSettings) and settings.data == BaseSettings().data:
        settings = replace(settings, data=str(place.texts))
    if given is None:
        given = frozenset({"run", "resume"}) if settings.resume else frozenset()
    port = free_port()
    number = len(list(place.runs.glob("*.out")))
    outputs = [place.runs / f"{number:04d}-{settings.run}-rank{rank}.out" for rank in range(world_size)]
    processes = [
        server().Process(
            target=_job, args=(rank, world_size, port, place, settings, given, fault, fault_args, outputs[rank]), daemon=True
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for process in processes:
        process.start()
    return Launch(processes, outputs)


def _job(
    rank: int,
    world_size: int,
    port: int,
    place: Place,
    settings: RunSettings,
    given: frozenset[str],
    fault: Callable[..., None] | None,
    fault_args: tuple[Any, ...],
    output: Path,
) -> None:
    """One rank: what `firstlight train base` (or mid, sft, rl: as the settings are) does, with its output in a file and its exit code as the process's.

    How fast the machine multiplies is not measured, and one prompt is continued in place of seven: that decides no number
    of a run, and is most of the time of one so small.
    """
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_place(rank, world_size, port, FIRSTLIGHT_CACHE=str(place.cache), FIRSTLIGHT_RUNS=str(place.runs))
    from firstlight.errors import FirstlightError
    from firstlight.recipes import base, mid, probe_list, rl, sft
    from firstlight.recipes.settings import MidSettings, RlSettings, SftSettings
    from firstlight.runtime import hardware, precision

    peak = hardware.Peak(1e11, "not measured in this test")
    hardware.device_peak = lambda *_, **__: peak  # type: ignore[assignment]
    precision.matmul_flops_per_s = lambda *_, **__: 1e11  # type: ignore[assignment]
    probe_list.default_prompts = lambda _: ["the"]  # type: ignore[assignment]
    # Looked up when called: a fault may put another in its place.
    stages: dict[type, Any] = {
        BaseSettings: (base, "train_base"), MidSettings: (mid, "train_mid"), SftSettings: (sft, "train_sft"),
        RlSettings: (rl, "train_rl"),
    }  # fmt: skip
    code = 0
    try:
        if fault is not None:
            fault(rank, *fault_args)
        module, name = stages[type(settings)]
        getattr(module, name)(settings, given=given)
    except FirstlightError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    sys.exit(code)


def run_to_end(place: Place, settings: RunSettings, world_size: int = 1, *, codes: int = 0, **more: Any) -> Launch:
    """`launch`, wait, and hold every rank to the exit code ``codes``."""
    job = launch(place, settings, world_size, **more)
    assert job.wait(timeout_s=240) == [codes] * world_size, job.everything()
    return job


def resumed(run: str, **changes: Any) -> BaseSettings:
    """Settings of ``--run NAME --resume``."""
    return replace(BaseSettings(), run=run, resume=True, **changes)


def rows(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of a kind in metrics.jsonl; a last line that is not whole is passed over."""
    try:
        text = (run_dir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in map(json.loads, whole) if row["kind"] == kind]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss in nats) of every update in the metrics."""
    return [(row["step"], row["loss_nats"]) for row in rows(run_dir, "train")]


def num_steps_done(run_dir: Path, *, since_unix_s: float = 0.0) -> int:
    """Updates in the metrics; those of one launch where its start is given: a launch before may have come further."""
    return max((row["step"] + 1 for row in rows(run_dir, "train") if row["time_unix_s"] >= since_unix_s), default=0)


def wait_until(condition: Callable[[], Any], what: str, *, job: Launch | None = None, timeout_s: float = 120) -> None:
    """Poll fast; AssertionError where it does not come true in time, or the job ends before."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"no {what} within {timeout_s} s\n{job.everything() if job else ''}"
        assert job is None or job.is_running() or condition(), f"the job ended without {what}\n{job.everything()}"
        time.sleep(0.005)


def wait_for_step(run_dir: Path, step: int, job: Launch | None = None) -> None:
    """Wait until update ``step`` is in the metrics."""
    since_unix_s = job.started_unix_s if job else 0.0
    wait_until(lambda: num_steps_done(run_dir, since_unix_s=since_unix_s) > step, f"step {step}", job=job)


def is_saving(run_dir: Path, job: Launch) -> bool:
    """Whether a checkpoint of this launch is half written at this moment; a kill before leaves half a one too."""
    folder = run_dir / "checkpoints"
    try:
        return any(
            name.startswith(".tmp-") and (folder / name).stat().st_mtime >= job.started_unix_s
            for name in os.listdir(folder)
        )
    except FileNotFoundError:
        return False


def steps_saved(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    folder = run_dir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name.removeprefix("step_")) for name in names if name.startswith("step_"))


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def tensors(run_dir: Path, step: int | None = None, *, rng: bool = False) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint (the newest), flat, with pieces of the ranks put together.

    A tensor's key is its file's kind and its name. rng: random states too.
    """
    newest = checkpoint_dir(run_dir, steps_saved(run_dir)[-1] if step is None else step)
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for file in sorted(newest.glob("*.safetensors")):
        kind = file.name.split("-")[0].removesuffix(".safetensors")
        if kind == "rng" and not rng:
            continue
        for name, tensor in load_file(file).items():
            part = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", name)
            whole, start = (part[1], int(part[2])) if part else (name, 0)
            pieces.setdefault(f"{kind}:{whole}", {})[start] = tensor.flatten()
    return {name: torch.cat([parts[start] for start in sorted(parts)]) for name, parts in pieces.items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Every weight, every number of the optimizer state and every loss are equal in each bit."""
    left, right = tensors(one, rng=True), tensors(other, rng=True)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} tensors differ, for example {different[:3]}"
    assert losses(one) == losses(other)


def assert_close_run(one: Path, other: Path, *, rel: float = 1e-5) -> None:
    """Losses within ``rel``, and the difference of all weights within ``rel`` of their norm: only the order in which
    numbers are added may differ. One process that accumulates in two passes differs from itself in one by as much."""
    left, right = (
        {name: tensor.double() for name, tensor in tensors(run).items() if name.startswith("model")}
        for run in (one, other)
    )
    assert left.keys() == right.keys()
    apart = math.sqrt(sum(float((left[name] - right[name]).square().sum()) for name in left))
    size = math.sqrt(sum(float(tensor.square().sum()) for tensor in left.values()))
    assert apart <= rel * size, f"the weights differ by {apart / size:.2g} of their norm"
    steps = [step for step, _ in losses(one)]
    assert steps == [step for step, _ in losses(other)]
    for (step, a), (_, b) in zip(losses(one), losses(other), strict=True):
        assert abs(a - b) <= rel, f"the loss of step {step} is {a} and {b}"


def flip_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
