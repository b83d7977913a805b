"""The whole road in one command: base run, mid-training, SFT, and the questions that say what the last two were worth.

    NAME (base) -> NAME-mid -> NAME-sft -> held-out questions, beside the base model's answers

Each stage is a run of its own with its own checkpoints, so a road that was stopped goes on in the stage that it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firstlight.errors import ConfigError
from firstlight.eval.chat.compare import Gain
from firstlight.eval.chat.results import ChatResult
from firstlight.recipes.base import train_base
from firstlight.recipes.chat_bundle import open_tasks
from firstlight.recipes.chat_eval import evaluate_run, show_chat
from firstlight.recipes.loading import dtype_for, load_for_inference
from firstlight.recipes.mid import train_mid
from firstlight.recipes.plans import depth_for_minutes
from firstlight.recipes.record import RECORD_FILE, did_you_mean, read_run
from firstlight.recipes.settings import BaseSettings, MidSettings, RunSettings, SftSettings
from firstlight.recipes.sft import train_sft
from firstlight.runtime import environment
from firstlight.runtime.console import Console
from firstlight.runtime.context import open_runtime

SHARES = {"base": 0.56, "mid": 0.18, "sft": 0.20}
"""Parts of the minutes; the rest is for the questions."""

MINUTES = 20.0

SUFFIXES = ("", "-mid", "-sft")
"""Of the names of the runs, in the order of the road."""

NUM_QUESTIONS = 200

Train = Callable[..., Any]


@dataclass(frozen=True)
class Stage:
    """One stage of the road: its settings, and what trains it."""

    settings: RunSettings
    train: Train


def stages(name: str, *, minutes: float) -> list[Stage]:
    """The three trainings, with their parts of the minutes."""
    mine = {stage: round(share * minutes, 2) for stage, share in SHARES.items()}
    return [
        Stage(BaseSettings(run=name, minutes=mine["base"]), train_base),
        Stage(MidSettings(run=f"{name}-mid", init=name, minutes=mine["mid"]), train_mid),
        Stage(SftSettings(run=f"{name}-sft", init=f"{name}-mid", minutes=mine["sft"], chat_tasks="none"), train_sft),
    ]


def walk(name: str, *, minutes: float | None, resume: bool) -> Mapping[str, Any]:
    """Train all stages, ask the last one and the first one the held-out questions, print both, and return the results.

    minutes: for all of it; None: MINUTES, or of a road that goes on those that it began with.
    resume: go on with a road that was stopped; stages that are done are left alone, those that have begun keep their minutes.
    Raises ConfigError, before anything is trained, for a name that is taken or a road that is not there; and what the stages
    raise.
    """
    runs_dir = environment.runs_dir()
    begun = [stage for stage in SUFFIXES if (runs_dir / f"{name}{stage}" / RECORD_FILE).exists()]
    if resume and not begun:
        raise ConfigError(
            f"--resume: there is no run {name}" + did_you_mean(name, runs_dir),
            hint="leave --resume out to begin; `firstlight runs list` shows all",
        )
    if begun and not resume:
        raise ConfigError(
            f"--run {name}: there is a run {name}{begun[0]} in {runs_dir}",
            hint="go on with --resume, or choose another name with --run",
        )
    if minutes is None:
        minutes = _minutes_of(runs_dir / name) or MINUTES
    for stage in stages(name, minutes=minutes):
        settings, given = stage.settings, {"run", "minutes", "init"}
        folder = environment.runs_dir() / str(settings.run)
        if resume and (folder / RECORD_FILE).exists():
            if read_run(folder).status == "done":
                continue
            stage.train(replace(settings, resume=True), given=frozenset({"run", "resume"}))
            continue
        if isinstance(settings, BaseSettings):
            settings = replace(settings, depth=depth_for_minutes(settings.minutes or minutes))
            given.add("depth")
        stage.train(settings, given=frozenset(given))
    result, base, gains = ask(f"{name}-sft", beside=name)
    return {"sft": result.to_dict(), "base": base.to_dict(), "gains": [gain.to_dict() for gain in gains]}


def _minutes_of(base_dir: Path) -> float | None:
    """Minutes of the whole road that a base run began, or None where it did not begin one."""
    if not (base_dir / RECORD_FILE).exists():
        return None
    mine = read_run(base_dir).config.get("settings", {}).get("minutes")
    return None if mine is None else mine / SHARES["base"]


def ask(run: str, *, beside: str, max_questions: int = NUM_QUESTIONS) -> tuple[ChatResult, ChatResult, list[Gain]]:
    """The first held-out questions of `builtin-chat` to two runs, with a table and the differences, printed."""
    with open_runtime(dtype=dtype_for(run, "run")) as runtime:
        console = Console(is_main=runtime.is_main, is_terminal=environment.is_terminal())
        tasks = open_tasks(
            ["builtin-chat"], data=None, control=runtime.control, cache_dir=environment.cache_dir(), report=console.say
        )
        results = []
        for name in (run, beside):
            loaded = load_for_inference(name, runtime, report=console.warn)
            results.append(evaluate_run(loaded, tasks, runtime=runtime, console=console, max_per_task=max_questions)[0])
        gains = show_chat(console, run, results[0], beside=(beside, results[1]))
        console.say(f"talk to it: firstlight chat {run}, or firstlight serve {run}")
    return results[0], results[1], gains


def free_name(runs_dir: Path, *, suffixes: tuple[str, ...] = ("",)) -> str:
    """``quickstart``, or with the first number for which no run of the road is there yet."""
    names = ["quickstart", *(f"quickstart-{number}" for number in range(2, 1000))]
    return next(name for name in names if not any((runs_dir / f"{name}{suffix}").exists() for suffix in suffixes))
