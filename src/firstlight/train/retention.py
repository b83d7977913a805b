"""Which checkpoints are kept, and deleting the others so that a kill on the way leaves no half of one under its name."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from firstlight.train import manifest
from firstlight.train.manifest import Report, list_checkpoints, reason


def retain(
    directory: Path,
    *,
    keep: int,
    best_step: int | None = None,
    known_good: Collection[Path] = (),
    report: Report | None = None,
) -> list[int]:
    """Delete old checkpoints; returns the steps that are gone. See `find_surplus`.

    A deletion that fails is reported; the others go on.
    """
    surplus = find_surplus(directory, keep=keep, best_step=best_step, known_good=known_good)
    return [step for step, path in surplus if delete(path, report)]


def find_surplus(
    directory: Path,
    *,
    keep: int,
    best_step: int | None = None,
    known_good: Collection[Path] = (),
    report: Report | None = None,
) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints that may go, the newest first. Kept are the newest ``keep`` good ones (at least
    one) and ``best_step``.

    A checkpoint is good if it is in ``known_good`` (written or verified by this process) or passes `verify` now. A damaged
    one among the newest does not count, is reported, and stays, for a person to look at.
    """
    num_good = 0
    surplus = []
    for step, path in reversed(list_checkpoints(directory)):
        if num_good < max(1, keep):
            problems = [] if path in known_good else manifest.verify(path)
            num_good += not problems
            if problems and report:
                report(f"the checkpoint of step {step} is damaged and does not count: {'; '.join(problems)}")
        elif step != best_step:
            surplus.append((step, path))
    return surplus


def clear_leftovers(directory: Path, report: Report | None) -> None:
    """Delete what saves and deletions that were cut off have left, and give a replaced checkpoint its name back."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith((".tmp-step_", ".trash-")):
            delete(path, report)
        elif path.name.startswith(".replaced-step_"):
            original = path.with_name(path.name.removeprefix(".replaced-"))
            if original.exists():
                delete(path, report)
            else:
                os.rename(path, original)


def delete(path: Path, report: Report | None) -> bool:
    """Delete a folder: first it loses its name, then its files. A failure is reported, and False."""
    trash = path
    try:
        if not path.exists():
            return True
        if not path.name.startswith(".trash-"):
            trash = path.with_name(f".trash-{path.name}-{time.time_ns()}")
            os.rename(path, trash)
        shutil.rmtree(trash)
    except OSError as error:
        if report:
            report(f"{path} could not be deleted ({reason(error)})")
        return False
    return True
