"""Resume by itself after a restart: `torchrun --max-restarts=3 -m firstlight train base` starts all processes again.

The command line is the same then, so it says nothing of resuming; torchrun's count of restarts does. A run that was not
given a name got one in the first attempt, which a small file beside the runs keeps for as long as the launch lasts:

    runs/.launch-ID    the name of the run, as text; ID is torchrun's name for the launch
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from firstlight.data.store import write_durably
from firstlight.recipes.settings import RunSettings
from firstlight.runtime import environment

S = TypeVar("S", bound=RunSettings)


def settings_for_attempt(
    settings: S, given: frozenset[str], runs_dir: Path, *, attempt: int
) -> tuple[S, frozenset[str], list[str]]:
    """Settings of this attempt, the names that count as given, and a sentence where something was changed.

    The first attempt gets back what it brings. A later one resumes the run of the first: the one that is named, else the
    one that `remember_run` noted. Where the first attempt ended before it had a run, this one begins it.
    """
    if attempt == 1 or settings.resume:
        return settings, given, []
    again = f"attempt {attempt}: torchrun has started the processes again"
    # Only what this launch has begun: a name alone may be another run's, which the first attempt has refused to touch.
    name = remembered_run(runs_dir)
    if name is None or settings.run not in (None, name):
        return settings, given, [f"{again}; no run had begun, so one begins now"]
    resumed = replace(settings, run=name, resume=True)
    return resumed, given | {"run", "resume"}, [f"{again}; the run {name} goes on from its newest good checkpoint"]


def remember_run(runs_dir: Path, name: str) -> None:
    """Note the name of this launch's run for its later attempts, where there may be any. Called by rank 0.

    Raises OSError where the folder of the runs cannot be written.
    """
    path = launch_file(runs_dir)
    if path is not None and environment.max_restarts() > 0:
        write_durably(path, f"{name}\n".encode())


def remembered_run(runs_dir: Path) -> str | None:
    """Name of the run that this launch began, or None where none is noted."""
    path = launch_file(runs_dir)
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def forget_run(runs_dir: Path) -> None:
    """Remove the note: the run is done. Called by rank 0, after all ranks have come to the end."""
    path = launch_file(runs_dir)
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def launch_file(runs_dir: Path) -> Path | None:
    """Where the name of this launch's run is noted; None where torchrun did not start this process."""
    launch = environment.launch_id()
    return runs_dir / f".launch-{launch}" if launch is not None else None
