"""Several processes do long work, each at its own pace, and none waits for another past its patience.

A collective ends with an error when one process comes later than the group's timeout. Preparing text takes as long as it
takes, hours for a large corpus, so nobody may wait for it in one collective. `together` lets a thread of each process do
the work, while the processes tell each other every half second how far they are: a wait ends when all are done, at once
when one has failed, and soon after one was killed.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from firstlight.errors import CheckpointError, ConfigError, DataError, FirstlightError, TrainingStopped
from firstlight.runtime.channel import Channel

T = TypeVar("T")

POLL_S = 0.5
SAY_EVERY_S = 60.0
SEEN_WITHIN_S = 2.0
"""A network's file system may show a new file a moment late."""

ERRORS: dict[str, type[FirstlightError]] = {
    kind.__name__: kind for kind in (FirstlightError, ConfigError, DataError, CheckpointError, TrainingStopped)
}


class Work(Generic[T]):
    """A function that runs in a thread: what it is doing, whether it has ended, and how."""

    def __init__(self, function: Callable[[Callable[[str], None]], T]) -> None:
        self._function = function
        self._doing = "starting"
        self._result: list[T] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="firstlight-work", daemon=True)

    def _run(self) -> None:
        try:
            self._result.append(self._function(self._note))
        except BaseException as error:
            self.error = error

    def _note(self, doing: str) -> None:
        self._doing = doing

    def state(self) -> dict[str, str]:
        """``done``, ``doing`` with words for people, or ``failed`` with the error's kind, words and hint."""
        if self._result:
            return {"state": "done"}
        error = self.error
        if error is None:
            return {"state": "doing", "what": self._doing}
        if isinstance(error, FirstlightError):
            return {"state": "failed", "kind": type(error).__name__, "what": error.what, "hint": error.hint}
        return {"state": "failed", "kind": "FirstlightError", "what": f"{type(error).__name__}: {error}", "hint": ""}

    def result(self) -> T:
        return self._result[0]


def together(
    control: Channel,
    function: Callable[[Callable[[str], None]], T],
    *,
    report: Callable[[str], None] | None = None,
    poll_s: float = POLL_S,
    say_every_s: float = SAY_EVERY_S,
) -> T:
    """Do ``function`` on every process and return its result when all have done theirs, however long one takes. Collective.

    function: gets a function to call with words that say what is being done now; must not use ``control``.
    report: told every ``say_every_s`` seconds who is not done, and with what.

    Raises what the function raised here; where it failed on another process only, the same kind of error with that rank's
    name; TrainingStopped where another process has ended.
    """
    if control.world_size == 1:
        return function(lambda doing: None)
    work = Work(function)
    work.thread.start()
    said_s = time.monotonic()
    while True:
        work.thread.join(poll_s)
        try:
            states = [json.loads(text) for text in control.gather_texts(json.dumps(work.state()))]
        except RuntimeError as error:
            raise TrainingStopped(
                "another process has ended while the data was prepared",
                hint="its own last lines say why; what was prepared is kept, so start the same command again",
            ) from error
        failed = [rank for rank, state in enumerate(states) if state["state"] == "failed"]
        if failed:
            if work.error is not None:
                raise work.error
            state = states[failed[0]]
            raise ERRORS.get(state["kind"], FirstlightError)(f"rank {failed[0]}: {state['what']}", hint=state["hint"])
        if all(state["state"] == "done" for state in states):
            return work.result()
        if report is not None and time.monotonic() - said_s >= say_every_s:
            said_s = time.monotonic()
            busy = [f"rank {rank} ({state['what']})" for rank, state in enumerate(states) if state["state"] == "doing"]
            report(f"waiting for {', '.join(busy[:4])}" + (f" and {len(busy) - 4} more" if len(busy) > 4 else ""))


def folder_leaders(control: Channel, folder: Path, *, seen_within_s: float = SEEN_WITHIN_S) -> list[int]:
    """For each rank the smallest rank that sees the same ``folder``: all 0 where one folder is shared by all. Collective.

    Each rank leaves a small file there for a moment. Raises ConfigError on every rank where one cannot write it.
    """
    if control.world_size == 1:
        return [0]
    token = folder / f".seen-{uuid.uuid4().hex}"
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror or error}"
    try:
        told = [
            json.loads(text) for text in control.gather_texts(json.dumps({"token": token.name, "problem": problem}))
        ]
        wrong = [f"rank {rank}: {each['problem']}" for rank, each in enumerate(told) if each["problem"]]
        if wrong:
            raise ConfigError("; ".join(wrong), hint="give all processes a folder that they may write to")
        leader = _first_seen(folder, [each["token"] for each in told], own=control.rank, within_s=seen_within_s)
        return [int(text) for text in control.gather_texts(str(leader))]
    finally:
        with suppress(OSError):
            token.unlink(missing_ok=True)


def _first_seen(folder: Path, names: list[str], *, own: int, within_s: float) -> int:
    end_s = time.monotonic() + within_s
    while not (folder / names[0]).exists() and time.monotonic() < end_s:
        time.sleep(0.1)
    return next(rank for rank, name in enumerate(names) if rank == own or (folder / name).exists())
