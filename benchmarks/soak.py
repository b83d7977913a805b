"""Trouble at random for as long as you like: kills, signals, hangs, torn files. Prints what was tried and what was lost.

    python benchmarks/soak.py --minutes 60 --seed 0
    python benchmarks/soak.py --minutes 2 --json FILE     a short look, without touching the page of results

A **life** is one run of a tiny model to its end, with trouble on the way (KINDS) and a resume after each, at random intervals
of saving. Most lives keep their number of processes, 1 to 3, and must end bit-equal to a run on as many that was left alone:
every weight, every number of the optimizer, every loss. In the others the number changes from launch to launch, and the order of sums
with it: losses must agree to 1e-5 nats and weights to 1e-4 of their norm.

Beside the lives one job on two processes trains from the first minute to the last without trouble, with a checkpoint and a score
every few steps. Its memory and open files are sampled, as are this program's own: both must stay flat.

Everything that goes against what is expected of it is a problem, printed at once with what the processes said. One JSON object at the end;
exit code 1 where there is a problem.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import results
from kill_and_resume import (
    Ending,
    Folders,
    Job,
    is_saving,
    made_up_texts,
    names_in,
    newest_step,
    num_steps_done,
    straight,
    tiny,
)

from firstlight.recipes.settings import BaseSettings

KINDS = {
    "kill all": "SIGKILL to all processes",
    "kill all in a save": "the same while a checkpoint is half written",
    "kill one": "SIGKILL to one process of several",
    "SIGTERM to one": "SIGTERM to one process",
    "SIGINT to one": "SIGINT to one process",
    "SIGTERM to all, twice": "as a scheduler does",
    "hang of one": "one process of several is stopped until the others' watchdogs end them",
    "pause of all": "all are stopped for a second and go on, as after Ctrl-Z",
    "flipped bit": "a bit of the newest checkpoint",
    "cut file": "a file of the newest checkpoint loses its end",
    "lost manifest": "the newest checkpoint's manifest is deleted",
    "half a save": "a folder of a save that was cut off",
}
BETWEEN_LAUNCHES = ("flipped bit", "cut file", "lost manifest", "half a save")
NEED_OTHERS = ("kill one", "hang of one")
SIGNALS = ("SIGTERM to one", "SIGINT to one", "SIGTERM to all, twice")
CLOSE_NATS = 1e-5
CLOSE_WEIGHTS = 1e-4
"""Of their norm. After 20 steps it is 1e-5 (tests/resilience); the difference grows with the steps, and there are 60 here."""
NUM_STEPS = 60
GIVEN = frozenset({"run", "resume", "save_every", "hang_timeout"})
HANG_TIMEOUT_S = 6.0
END_WITHIN_S = 60.0


@dataclass
class Found:
    """What was tried, by kind, and what came of it."""

    tried: Counter[str] = field(default_factory=Counter)
    too_late: int = 0
    steps_lost: Counter[str] = field(default_factory=Counter)
    most_steps_lost: dict[str, int] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lives: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    largest_weight_distance: float = 0.0
    largest_loss_distance: float = 0.0

    def problem(self, what: str, job: Job | None = None) -> None:
        self.problems.append(what)
        print(f"PROBLEM: {what}\n{job.said() if job else ''}", file=sys.stderr, flush=True)

    def lost(self, kind: str, steps: int) -> None:
        self.steps_lost[kind] += steps
        self.most_steps_lost[kind] = max(self.most_steps_lost.get(kind, 0), steps)


def newest_folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / f"step_{newest_step(run_dir):08d}"


def damage(run_dir: Path, kind: str, draw: random.Random) -> bool:
    """Do something to the files of a run that is not running; False where it has too few to survive that."""
    folder = run_dir / "checkpoints"
    if kind == "half a save":
        # After the last step nothing is saved any more, so nothing would clear it away.
        if not folder.is_dir() or newest_step(run_dir) >= NUM_STEPS:
            return False
        half = folder / f".tmp-step_{newest_step(run_dir) + 1:08d}"
        half.mkdir(exist_ok=True)
        (half / "model.safetensors").write_bytes(b"\0" * draw.randint(0, 5000))
        return True
    if sum(name.startswith("step_") for name in names_in(folder)) < 2:
        return False
    newest = newest_folder(run_dir)
    if not is_good(newest):
        # It was damaged already, and no launch has saved since.
        return False
    if kind == "lost manifest":
        (newest / "manifest.json").unlink()
        return True
    path = draw.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    if kind == "cut file":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return True


def is_good(path: Path) -> bool:
    """Whether a checkpoint has every file that its manifest lists, of the right size (for counting what was lost)."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return False


class Life:
    """One run, from its first launch to its end."""

    def __init__(
        self,
        name: str,
        folders: Folders,
        settings: BaseSettings,
        draw: random.Random,
        found: Found,
        after_launch: Callable[[], None],
    ) -> None:
        self.name, self.folders, self.draw, self.found = name, folders, draw, found
        self.after_launch = after_launch
        self.settings = replace(settings, run=name)
        self.run_dir = folders.runs / name
        self.has_begun = False
        self.process_ids: list[int] = []

    def launch(self, world_size: int, *, hang_timeout: float) -> Job:
        settings = replace(
            self.settings, resume=self.has_begun, save_every=self.draw.randint(1, 6), hang_timeout=hang_timeout
        )
        job = Job(self.folders, settings, world_size, given=GIVEN if self.has_begun else frozenset())
        self.has_begun = True
        self.found.launches += 1
        self.process_ids += [process.pid for process in job.processes]
        return job

    def suffer(self, kind: str, world_size: int) -> None:
        """One launch and one trouble, or damage to the files between two launches."""
        if kind in BETWEEN_LAUNCHES:
            if damage(self.run_dir, kind, self.draw):
                self.found.tried[kind] += 1
            return
        job = self.launch(world_size, hang_timeout=HANG_TIMEOUT_S if kind == "hang of one" else 120.0)
        # Sometimes before the first step, when the processes have met; else a few steps on. Until they have met, and for a hang
        # until the first step, it is torchrun that ends the others, or a timeout of half an hour.
        target = newest_step(self.run_dir) + self.draw.randint(0, 4)
        if self.draw.random() < 0.1 and kind != "hang of one":
            job.wait_until(lambda: "dtype" in job.said(10**6))
            time.sleep(self.draw.random())
        else:
            job.wait_until(lambda: num_steps_done(self.run_dir, since_unix_s=job.started_unix_s) > target)
        if kind == "kill all in a save":
            job.wait_until(lambda: is_saving(self.run_dir, since_unix_s=job.started_unix_s))
        elif kind != "kill all":
            time.sleep(self.draw.random() / 10)
        if not all(process.is_alive() for process in job.processes):
            self.found.too_late += 1
            self.judge_end(job.wait(END_WITHIN_S), job)
            return
        self.found.tried[kind] += 1
        codes = self.act(kind, job)
        self.judge(kind, codes, job)
        self.after_launch()

    def act(self, kind: str, job: Job) -> list[int | None]:
        """The trouble itself; exit codes of all."""
        one = self.draw.randrange(len(job.processes))
        if kind.startswith("kill all"):
            job.signal(signal.SIGKILL)
        elif kind == "kill one":
            job.signal(signal.SIGKILL, one)
        elif kind == "SIGTERM to one":
            job.signal(signal.SIGTERM, one)
        elif kind == "SIGINT to one":
            job.signal(signal.SIGINT, one)
        elif kind == "SIGTERM to all, twice":
            job.signal(signal.SIGTERM)
            time.sleep(self.draw.random() / 20)
            job.signal(signal.SIGTERM)
        elif kind == "pause of all":
            job.signal(signal.SIGSTOP)
            time.sleep(1)
            job.signal(signal.SIGCONT)
        else:
            job.signal(signal.SIGSTOP, one)
            others = [process for rank, process in enumerate(job.processes) if rank != one]
            until_s = time.monotonic() + END_WITHIN_S
            while any(process.is_alive() for process in others) and time.monotonic() < until_s:
                time.sleep(0.05)
            if any(process.is_alive() for process in others):
                self.found.problem(f"{self.name}: the others waited for a stopped process without an end", job)
            job.signal(signal.SIGCONT, one)
        return job.wait(END_WITHIN_S)

    def judge(self, kind: str, codes: list[int | None], job: Job) -> None:
        """Hold the exit codes, the words and the files to what is promised."""
        self.found.endings[f"{kind}: {sorted({str(code) for code in codes})}"] += 1
        if "Traceback" in job.said(10**6):
            self.found.problem(f"{self.name}: a traceback after {kind}", job)
        if None in codes:
            self.found.problem(
                f"{self.name}: a process did not end within {END_WITHIN_S:.0f} s after {kind}: {codes}", job
            )
        if kind in SIGNALS and codes == [130] * len(codes):
            lost = num_steps_done(self.run_dir) - newest_step(self.run_dir)
            # A launch that was still preparing has not trained: what is missing then was lost by the trouble before.
            trained = "while preparing" not in job.said()
            if lost > 0 and trained and "stopped at once" not in job.said():
                self.found.problem(f"{self.name}: {lost} steps were lost after {kind}", job)
        if kind == "kill one" and 0 in codes and codes.count(0) < len(codes) - 1:
            self.found.problem(f"{self.name}: {codes} after {kind}", job)
        if kind == "pause of all" and codes != [0] * len(codes):
            self.found.problem(f"{self.name}: a pause ended the run with {codes}", job)
        good = [
            int(name.removeprefix("step_"))
            for name in names_in(self.run_dir / "checkpoints")
            if name.startswith("step_") and is_good(self.run_dir / "checkpoints" / name)
        ]
        self.found.lost(kind, max(0, num_steps_done(self.run_dir) - max(good, default=0)))

    def judge_end(self, codes: list[int | None], job: Job) -> None:
        if codes != [0] * len(codes):
            self.found.problem(f"{self.name}: a launch without trouble ended with {codes}", job)

    def end(self, world_size: int) -> None:
        """Let it come to its end; then nothing may be left lying about, on the disk or among the processes."""
        job = self.launch(world_size, hang_timeout=120.0)
        self.judge_end(job.wait(600), job)
        left = [name for name in names_in(self.run_dir / "checkpoints") if not name.startswith("step_")]
        left += [name for name in names_in(self.run_dir) if name.startswith(".")]
        if left:
            self.found.problem(f"{self.name}: left behind: {left}")
        still = [number for number in self.process_ids if Path(f"/proc/{number}").exists()]
        if still:
            self.found.problem(f"{self.name}: processes that are still there: {still}")


def kinds_for(world_sizes: list[int], num: int, draw: random.Random) -> list[str]:
    names = [kind for kind in KINDS if max(world_sizes) > 1 or kind not in NEED_OTHERS]
    return [draw.choice(names) for _ in range(num)]


def one_life(
    name: str,
    folders: Folders,
    settings: BaseSettings,
    draw: random.Random,
    found: Found,
    reference: Callable[[int], Ending],
    after_launch: Callable[[], None],
) -> None:
    """Live one life and compare its end."""
    mixed = draw.random() < 0.3
    fixed = draw.randint(1, 3)
    life = Life(name, folders, settings, draw, found, after_launch)
    kinds = kinds_for([1, 2, 3] if mixed else [fixed], draw.randint(4, 9), draw)
    for kind in kinds:
        size = draw.randint(2 if kind in NEED_OTHERS else 1, 3) if mixed else fixed
        life.suffer(kind, size)
    life.end(draw.randint(1, 3) if mixed else fixed)
    found.lives["mixed" if mixed else str(fixed)] += 1
    if found.problems and found.problems[-1].startswith(name):
        return
    ending = Ending.of(life.run_dir)
    if mixed:
        weights, loss = reference(1).distance(ending)
        found.largest_weight_distance = max(found.largest_weight_distance, weights)
        found.largest_loss_distance = max(found.largest_loss_distance, loss)
        if weights > CLOSE_WEIGHTS or loss > CLOSE_NATS:
            found.problem(f"{name}: weights are {weights:.2g} and losses {loss:.2g} away, after {kinds}")
    elif wrong := reference(fixed).differences(ending):
        found.problem(f"{name} on {fixed}: {wrong[:3]}, after {kinds}")
    else:
        shutil.rmtree(life.run_dir)


@dataclass
class Samples:
    """Memory and open files of a process over time."""

    rss_mib: list[float] = field(default_factory=list)
    num_files: list[int] = field(default_factory=list)

    def take(self, process_id: int) -> None:
        try:
            status = Path(f"/proc/{process_id}/status").read_text()
            number = len(os.listdir(f"/proc/{process_id}/fd"))
        except OSError:
            return
        self.rss_mib.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
        self.num_files.append(number)

    def facts(self) -> dict[str, Any]:
        """Medians of the second and the last quarter: start-up is over by then, and single samples do not count."""
        quarter = len(self.rss_mib) // 4
        if quarter < 2:
            return {"samples": len(self.rss_mib)}
        return {
            "samples": len(self.rss_mib),
            "rss_mib_second_quarter": round(statistics.median(self.rss_mib[quarter : 2 * quarter]), 1),
            "rss_mib_last_quarter": round(statistics.median(self.rss_mib[-quarter:]), 1),
            "files_second_quarter": statistics.median(self.num_files[quarter : 2 * quarter]),
            "files_last_quarter": statistics.median(self.num_files[-quarter:]),
        }

    def is_flat(self, *, spare_mib: float = 16.0) -> bool:
        facts = self.facts()
        if "rss_mib_last_quarter" not in facts:
            return True
        grown = facts["rss_mib_last_quarter"] - facts["rss_mib_second_quarter"]
        return grown <= spare_mib and facts["files_last_quarter"] <= facts["files_second_quarter"] + 1


class LongJob:
    """One job on two processes that is left alone until the end of the soak, and watched."""

    def __init__(self, folders: Folders, settings: BaseSettings) -> None:
        self.job = Job(
            folders,
            replace(settings, run="long", num_iterations=10**6, save_every=20, eval_every=50, sample_every=500),
            2,
        )
        self.run_dir = self.job.run_dir
        self.samples = [Samples(), Samples()]
        for process in self.job.processes:
            # The lives go first.
            os.setpriority(os.PRIO_PROCESS, process.pid, 15)

    def sample(self) -> None:
        for process, samples in zip(self.job.processes, self.samples, strict=True):
            samples.take(process.pid)

    def end(self, found: Found) -> dict[str, Any]:
        """SIGTERM to one rank; all must end with a checkpoint of the last step."""
        if not self.job.is_running():
            found.problem("the long job has ended by itself", self.job)
        self.job.signal(signal.SIGTERM, 1)
        codes = self.job.wait(END_WITHIN_S)
        if codes != [130, 130]:
            found.problem(f"the long job ended with {codes}", self.job)
        steps = num_steps_done(self.run_dir)
        if steps != newest_step(self.run_dir):
            found.problem(f"the long job did {steps} steps and saved {newest_step(self.run_dir)}")
        if not all(samples.is_flat() for samples in self.samples):
            found.problem(f"the long job grew: {[samples.facts() for samples in self.samples]}")
        return {"steps": steps, "ranks": [samples.facts() for samples in self.samples]}


def soak(minutes: float, seed: int, root: Path) -> dict[str, Any]:
    """Lives until the time is over; the figures."""
    draw = random.Random(seed)
    found = Found()
    folders = Folders(cache=root / "cache", runs=root / "runs")
    folders.runs.mkdir(parents=True)
    settings = replace(tiny(made_up_texts(root / "texts")), num_iterations=NUM_STEPS)
    made: dict[int, Ending] = {}

    def reference(world_size: int) -> Ending:
        if world_size not in made:
            made[world_size] = straight(folders, settings, world_size)
        return made[world_size]

    reference(1)
    started_s = time.monotonic()
    long = LongJob(folders, settings)
    supervisor = Samples()
    number = 0
    # All endings are made before the samples count: keeping them is no leak.
    for size in (2, 3):
        reference(size)

    def sample() -> None:
        supervisor.take(os.getpid())
        long.sample()

    while time.monotonic() - started_s < 60 * minutes:
        one_life(f"life{number}", folders, settings, draw, found, reference, sample)
        number += 1
        print(
            f"{(time.monotonic() - started_s) / 60:.1f} min: {number} lives, {found.launches} launches, "
            f"{sum(found.tried.values())} troubles, {len(found.problems)} problems",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    facts = long.end(found)
    if not supervisor.is_flat():
        found.problem(f"this program grew: {supervisor.facts()}")
    zombies = [
        name for name in os.listdir("/proc") if name.isdigit() and _parent_and_state(name) == (str(os.getpid()), "Z")
    ]
    if zombies:
        found.problem(f"processes that nobody has waited for: {zombies}")
    return {
        "minutes": round((time.monotonic() - started_s) / 60, 1),
        "seed": seed,
        "lives": dict(found.lives),
        "launches": found.launches,
        "tried": dict(found.tried),
        "came_too_late": found.too_late,
        "steps_made_again": dict(found.steps_lost),
        "most_steps_made_again_at_once": found.most_steps_lost,
        "endings": dict(sorted(found.endings.items())),
        "largest_weight_distance_mixed": found.largest_weight_distance,
        "largest_loss_distance_mixed_nats": found.largest_loss_distance,
        "long_job": facts,
        "supervisor": supervisor.facts(),
        "zombies": len(zombies),
        "problems": found.problems,
    }


def _parent_and_state(process_id: str) -> tuple[str, str]:
    try:
        state, parent = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except (OSError, ValueError):
        return "", ""
    return parent, state


def write(figures: dict[str, Any], path: Path | None) -> Path:
    """The result in the common form."""
    rows: list[list[results.Cell]] = [
        [
            f"{kind}: {what}",
            figures["tried"].get(kind, 0),
            None if kind in BETWEEN_LAUNCHES else figures["steps_made_again"].get(kind, 0),
            None if kind in BETWEEN_LAUNCHES else figures["most_steps_made_again_at_once"].get(kind, 0),
        ]
        for kind, what in KINDS.items()
    ]
    long = figures["long_job"]
    rank = long["ranks"][0]
    notes = [
        f"{sum(figures['lives'].values())} lives ({', '.join(f'{n} on {size}' for size, n in sorted(figures['lives'].items()))}), "
        f"{figures['launches']} launches in {figures['minutes']} minutes; problems: {len(figures['problems'])}.",
        "Lives with one number of processes ended bit-equal to runs that were left alone; mixed ones within "
        f"{figures['largest_weight_distance_mixed']:.1g} of the weights' norm and "
        f"{figures['largest_loss_distance_mixed_nats']:.1g} nats of each loss.",
        f"The job of two processes that was left alone did {long['steps']:,} steps; rank 0 used "
        f"{rank.get('rss_mib_second_quarter')} MiB in the second quarter and {rank.get('rss_mib_last_quarter')} MiB in the last, "
        f"with {rank.get('files_second_quarter')} and {rank.get('files_last_quarter')} open files.",
        "Steps made again were done since the newest good checkpoint; what a file's damage costs is in the row of the trouble after it.",
    ]
    return results.write_result(
        "soak",
        title="Soak: random kills, signals, hangs and torn files",
        command=f"python benchmarks/soak.py --minutes {figures['minutes']:.0f} --seed {figures['seed']}",
        columns=["trouble", "times", "steps made again", "most at once"],
        rows=rows,
        notes=notes,
        figures=figures,
        path=path,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the result; results/soak.json and the page if not given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="firstlight-soak-") as root:
        figures = soak(asked.minutes, asked.seed, Path(root))
    write(figures, asked.json)
    print(json.dumps(figures))
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
