"""`firstlight checkpoint`: are they whole, which are there, and which may go."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def verify(target: str, /, *, runs_dir: Path | None = None, json: bool = False) -> None:
    """Read every byte of a run's checkpoints, or of one, and name each bad file. Exit code 4 if any is damaged.

    For example:

        firstlight checkpoint verify mine
        firstlight checkpoint verify runs/mine/checkpoints/step_00000040
        firstlight checkpoint verify mine --json

    Parameters
    ----------
    target
        Name of the run, its folder, or the folder of one checkpoint.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    from firstlight.errors import CheckpointError
    from firstlight.runtime.console import Console

    console = Console()
    found = _checkpoints(target, runs_dir)
    problems: dict[Path, list[str]] = {}
    with console.progress("verifying", len(found), unit="checkpoints") as bar:
        for _, path in found:
            problems[path] = _problems(path)
            bar.advance()
    # A run that is training deletes old ones meanwhile.
    found = [(step, path) for step, path in found if path.is_dir()]
    if json:
        console.json({
            "checkpoints": [
                {"step": step, "path": str(path), "good": not problems[path], "problems": problems[path]}
                for step, path in found
            ]
        })  # fmt: skip
    else:
        for step, path in found:
            for problem in problems[path]:
                console.warn(f"the checkpoint of step {step} is damaged: {problem}")
            if not problems[path]:
                console.say(f"good: {path}")
    damaged = [step for step, path in found if problems[path]]
    if damaged:
        all_of = "all" if len(damaged) == len(found) else f"{len(damaged)} of {len(found)}"
        raise CheckpointError(
            f"{all_of} checkpoints are damaged: step{'s' * (len(damaged) > 1)} {', '.join(map(str, damaged))}"
            if len(found) > 1
            else f"the checkpoint {found[0][1]} is damaged",
            hint="--resume and `firstlight sample` take the newest good one by themselves",
        )


def list_(run: str, /, *, runs_dir: Path | None = None, json: bool = False) -> None:
    """List a run's checkpoints, the newest first: size, age, processes that wrote it, newest and best, whole or not.

    Whole means here that each file is there and has its size; `verify` reads every byte.

    For example:

        firstlight checkpoint list mine
        firstlight checkpoint list mine --json

    Parameters
    ----------
    run
        Name of the run, or its folder.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    import time

    from firstlight.runtime.console import Console, format_bytes, format_duration

    console = Console()
    run_dir = _run_dir(run, runs_dir)
    entries = _listed(run_dir)
    if json:
        console.json({"run": str(run_dir), "checkpoints": entries})
        return
    if not entries:
        console.say(f"{run_dir} has no checkpoint yet")
        return
    console.table(
        ["step", "size", "saved", "processes", "mark", "state"],
        [
            [
                entry["step"],
                format_bytes(entry["num_bytes"]),
                f"{format_duration(max(0.0, time.time() - entry['saved_unix_s']))} ago",
                entry["num_processes"],
                ", ".join(mark for mark in ("newest", "best") if entry[mark]) or None,
                "whole" if entry["whole"] else "damaged",
            ]
            for entry in entries
        ],
    )
    for entry in entries:
        for problem in entry["problems"]:
            console.warn(f"the checkpoint of step {entry['step']} is damaged: {problem}")


def prune(run: str, /, *, keep: int, dry_run: bool = False, runs_dir: Path | None = None, json: bool = False) -> None:
    """Delete a run's old checkpoints, but for the newest good ones and the one with the best score. Asks nothing.

    The newest are read to see that they are good. A damaged one among them does not count, and stays.

    For example:

        firstlight checkpoint prune mine --keep 1
        firstlight checkpoint prune mine --keep 2 --dry-run

    Parameters
    ----------
    run
        Name of the run, or its folder.
    keep
        How many good ones stay, beside the best. At least 1.
    dry_run
        Only say what would be deleted.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    from firstlight.errors import ConfigError
    from firstlight.runtime.console import Console, format_bytes
    from firstlight.train.retention import delete, find_surplus

    if keep < 1:
        raise ConfigError(f"--keep {keep} would delete the last good checkpoint", hint="the smallest is 1")
    console = Console()
    run_dir = _run_dir(run, runs_dir)
    surplus = find_surplus(
        run_dir / "checkpoints", keep=keep, best_step=_best_step(run_dir), report=console.warn
    )  # fmt: skip
    sizes = {path: _num_bytes(path) for _, path in surplus}
    gone = [(step, path) for step, path in surplus if dry_run or delete(path, console.warn)]
    freed = sum(sizes[path] for _, path in gone)
    if json:
        console.json({
            "run": str(run_dir),
            "dry_run": dry_run,
            "deleted": [{"step": step, "path": str(path), "num_bytes": sizes[path]} for step, path in gone],
            "freed_bytes": freed,
        })  # fmt: skip
        return
    done = "would be deleted" if dry_run else "deleted"
    for _, path in gone:
        console.say(f"{done}: {path} ({format_bytes(sizes[path])})")
    if gone:
        console.say(f"{format_bytes(freed)} {'would be' if dry_run else 'are'} free again")
    elif not surplus:
        console.say(f"nothing to delete: {run_dir} has no more than the {keep} newest good checkpoints and the best")


def _run_dir(run: str, runs_dir: Path | None) -> Path:
    from firstlight.recipes.record import find_run
    from firstlight.runtime import environment

    return find_run(run, runs_dir or environment.runs_dir())


def _checkpoints(target: str, runs_dir: Path | None) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints that a person means by a run's name or a path; at least one."""
    from firstlight.errors import CheckpointError
    from firstlight.train.manifest import list_checkpoints, step_of

    path = Path(target)
    step = step_of(path)
    if step is not None and path.is_dir():
        return [(step, path)]
    found = list_checkpoints(path)
    if not found:
        run_dir = _run_dir(target, runs_dir)
        found = list_checkpoints(run_dir / "checkpoints")
        if not found:
            raise CheckpointError(f"{run_dir} has no checkpoint yet", hint="see --save-every")
    return found


def _problems(path: Path) -> list[str]:
    from firstlight.errors import CheckpointError
    from firstlight.train.checkpoint import load_checkpoint, verify

    problems = verify(path)
    if not problems:
        try:
            load_checkpoint(path, verified=True)
        except CheckpointError as error:
            problems = [error.what]
    return problems


def _listed(run_dir: Path) -> list[dict[str, Any]]:
    from firstlight.errors import CheckpointError
    from firstlight.train.manifest import list_checkpoints, num_processes, read_manifest, verify_sizes

    best_step = _best_step(run_dir)
    entries: list[dict[str, Any]] = []
    for step, path in reversed(list_checkpoints(run_dir / "checkpoints")):
        problems = verify_sizes(path)
        try:
            processes = num_processes(read_manifest(path)["files"])
        except CheckpointError:
            processes = None
        if not path.is_dir():  # A run that is training deletes old ones meanwhile.
            continue
        entries.append({
            "step": step,
            "path": str(path),
            "num_bytes": _num_bytes(path),
            "saved_unix_s": path.stat().st_mtime,
            "num_processes": processes,
            "newest": not problems and not any(entry["newest"] for entry in entries),
            "best": step == best_step,
            "whole": not problems,
            "problems": problems,
        })  # fmt: skip
    return entries


def _best_step(run_dir: Path) -> int | None:
    """Step of the kept checkpoint with the lowest val_bpb, or None where none has one."""
    from firstlight.errors import CheckpointError
    from firstlight.recipes.loading import choose_checkpoint
    from firstlight.train.manifest import step_of

    try:
        return step_of(choose_checkpoint(run_dir, "best"))
    except CheckpointError:
        return None


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
