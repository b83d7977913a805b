"""`firstlight quickstart`: the main job, on text that every install carries."""

from __future__ import annotations

from dataclasses import replace

MINUTES = 4.5


def quickstart(
    *,
    minutes: float | None = None,
    run: str | None = None,
    chat: bool = False,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Train a small language model on the built-in text: tokenizer, training, bits per byte, samples, report.

    The text is the English documentation that Python and the installed libraries carry (about 10 MB of prose), so nothing is
    downloaded. The size of the model follows from how fast this machine is.

    With --chat the model then learns to talk: mid-training and SFT on conversations made of the same documentation, and 200
    questions that it has never seen, beside the answers that it gave before.

    For example:

        firstlight quickstart
        firstlight quickstart --minutes 15 --run longer
        firstlight quickstart --chat
        firstlight quickstart --chat --run quickstart --resume

    Parameters
    ----------
    minutes
        Wall-clock minutes from launch to the final score. [4.5; with --chat 20; a run that goes on keeps its own]
    run
        Name of the run (its folder is runs/NAME; with --chat also NAME-mid and NAME-sft). [quickstart, quickstart-2, ...]
    chat
        Go on until the model chats.
    resume
        Continue the run of that name.
    """
    from firstlight.errors import ConfigError
    from firstlight.recipes import base, plans, road
    from firstlight.recipes.settings import BaseSettings
    from firstlight.runtime import environment

    if minutes is not None and not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes {minutes:g} must be above zero", hint="4.5 is usual, and 20 with --chat")
    if resume and run is None:
        raise ConfigError(
            "--resume needs the name of the run", hint="give --run NAME; `firstlight runs list` shows them"
        )
    if chat:
        name = run or road.free_name(environment.runs_dir(), suffixes=road.SUFFIXES)
        road.walk(name, minutes=minutes, resume=resume)
        return
    minutes_given = minutes is not None
    minutes = MINUTES if minutes is None else minutes
    settings = BaseSettings(
        run=run or road.free_name(environment.runs_dir()), resume=resume, data="builtin", minutes=minutes
    )
    given = {"run", "resume", "data"} | ({"minutes"} if minutes_given or not resume else set())
    if not resume:
        settings = replace(settings, depth=plans.depth_for_minutes(minutes))
        given.add("depth")
    base.train_base(settings, given=frozenset(given))
