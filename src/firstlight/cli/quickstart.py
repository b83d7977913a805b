"""`firstlight quickstart`: the main job, on text that every install carries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path


def quickstart(*, minutes: float = 4.5, run: str | None = None, resume: bool = False) -> None:
    """Train a small language model on the built-in text: tokenizer, training, bits per byte, samples, report.

    The text is the English documentation that Python and the installed libraries carry (about 10 MB of prose), so nothing is
    downloaded. The size of the model follows from how fast this machine is.

    For example:

        firstlight quickstart
        firstlight quickstart --minutes 15 --run longer

    Parameters
    ----------
    minutes
        Wall-clock minutes from launch to the final score.
    run
        Name of the run (its folder is runs/NAME). [quickstart, quickstart-2, ...]
    resume
        Continue the run of that name.
    """
    from firstlight.recipes import base, plans
    from firstlight.recipes.settings import BaseSettings
    from firstlight.runtime import environment

    name = run or _free_name(environment.runs_dir())
    settings = BaseSettings(run=name, resume=resume, data="builtin", minutes=minutes)
    given = {"run", "resume", "data", "minutes"}
    if not resume:
        settings = replace(settings, depth=plans.depth_for_minutes(minutes))
        given.add("depth")
    base.train_base(settings, given=frozenset(given))


def _free_name(runs_dir: Path) -> str:
    """``quickstart``, or with the first number that is free."""
    names = ["quickstart", *(f"quickstart-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (runs_dir / name).exists())
