"""Experiment trackers beside ``metrics.jsonl``: wandb, tensorboard, trackio. Each is an extra, imported only when
asked for.

A tracker gets the same rows as the log, numbers only (texts stay in the run's folder), under ``kind/key``, for example
``train/loss_nats``. A tracker that fails on the way is reported once and dropped: it never ends a run.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from firstlight.errors import ConfigError

PROJECT = "firstlight"


class Tracker(Protocol):
    """What a run needs of a tracker."""

    def log(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        """Show one row of ``metrics.jsonl``."""

    def finish(self) -> None:
        """Send what is left and close."""


class NoTracker:
    """Where ``--tracker`` was not given."""

    def log(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandbTracker:
    """https://docs.wandb.ai: ``WANDB_MODE=offline`` keeps the run on this machine."""

    def __init__(self, *, run_name: str, config: Mapping[str, Any], directory: Path) -> None:
        wandb = importlib.import_module("wandb")
        # The id makes a resumed run continue its own curves.
        self._run = wandb.init(
            project=PROJECT, name=run_name, id=run_name, resume="allow", config=dict(config), dir=str(directory)
        )
        # Rows go back in step after a resume, which wandb's own step refuses; so the step is a value like the others.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        numbers = _numbers(kind, values)
        if numbers:
            self._run.log(numbers if step is None else {"step": step, **numbers})

    def finish(self) -> None:
        self._run.finish()


class TensorboardTracker:
    """Writes ``<run>/tensorboard``; look with ``tensorboard --logdir runs``."""

    def __init__(self, *, run_name: str, config: Mapping[str, Any], directory: Path) -> None:
        # torch's writer needs the package; asking for it by name gives the clearer error.
        importlib.import_module("tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard")
        self._writer = writer.SummaryWriter(log_dir=str(directory / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {key} = {value}" for key, value in config.items()))

    def log(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        for key, value in _numbers(kind, values).items():
            self._writer.add_scalar(key, value, global_step=step)

    def finish(self) -> None:
        self._writer.close()


class TrackioTracker:
    """A local tracker; look with ``trackio show --project firstlight``."""

    def __init__(self, *, run_name: str, config: Mapping[str, Any], directory: Path) -> None:
        self._trackio = importlib.import_module("trackio")
        self._trackio.init(project=PROJECT, name=run_name, config=dict(config), resume="allow")

    def log(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        numbers = _numbers(kind, values)
        if numbers:
            self._trackio.log(numbers, step=step)

    def finish(self) -> None:
        self._trackio.finish()


TRACKERS = {"wandb": WandbTracker, "tensorboard": TensorboardTracker, "trackio": TrackioTracker}


class UntilItFails:
    """Another tracker, dropped at its first error, which is reported once through ``warn``."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker
        self._warn = warn

    def log(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log(kind, step, values)
            except Exception as error:
                self._drop(error)

    def finish(self) -> None:
        if self._tracker is not None:
            try:
                self._tracker.finish()
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._tracker = None
        self._warn(
            f"the tracker {self._name} failed and is dropped ({type(error).__name__}: {error}); "
            "the run goes on, and metrics.jsonl has every number"
        )


def open_tracker(
    name: str | None, *, run_name: str, config: Mapping[str, Any], directory: Path, warn: Callable[[str], None]
) -> Tracker:
    """The tracker of that name for one run (on rank 0), or one that does nothing where ``name`` is None.

    directory: the run's folder. warn: told once if the tracker fails later.
    Raises ConfigError for an unknown name, a package that is not installed, or a tracker that cannot start.
    """
    if name is None:
        return NoTracker()
    if name not in TRACKERS:
        raise ConfigError(f"--tracker {name} is not known", hint=f"one of {', '.join(TRACKERS)}")
    try:
        tracker = TRACKERS[name](run_name=run_name, config=config, directory=directory)
    except ImportError as error:
        raise ConfigError(
            f"--tracker {name} needs a package that cannot be imported ({error})",
            hint=f'pip install "firstlight[{name}]"',
        ) from error
    except Exception as error:
        hint = "leave --tracker away: metrics.jsonl and report.html have every number"
        if name == "wandb":
            hint = f"log in with `wandb login`, or set WANDB_MODE=offline, or {hint}"
        raise ConfigError(f"--tracker {name} could not start: {type(error).__name__}: {error}", hint=hint) from error
    return UntilItFails(name, tracker, warn)


def _numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float | int]:
    """The finite numbers of a row under ``kind/key``."""
    found: dict[str, float | int] = {}
    for key, value in values.items():
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
            found[f"{kind}/{key}"] = number
    return found
