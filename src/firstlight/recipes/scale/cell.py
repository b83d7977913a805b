"""One cell of a study: a base run in a process of its own.

A process for each, because what a run leaves behind (compiled kernels, torch's memory, a crash, the system's out-of-memory
killer) is then gone with it, and because its command line is one that a person can type: the study keeps it.
It costs the imports again, some 5 s a cell.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from firstlight.recipes.scale.grid import Cell, Rules
from firstlight.recipes.settings import flag
from firstlight.runtime import environment

POLL_S = 0.2


@dataclass(frozen=True)
class Common:
    """What all cells share beside the grid's rules. final_documents: validation documents of the final score."""

    data: str
    val: str | None = None
    final_documents: int = 0
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    tokenizer: Path | None = None


def settings_of(cell: Cell, rules: Rules, common: Common) -> dict[str, Any]:
    """Settings of the cell's base run (fields of `BaseSettings`), without those that keep their default."""
    settings = {
        "run": cell.run,
        "data": common.data,
        "val": common.val,
        "tokenizer": common.tokenizer,
        "depth": cell.depth,
        "preset": rules.preset,
        "vocab_size": rules.vocab_size,
        "max_seq_len": rules.seq_len,
        "head_dim": rules.head_dim,
        "num_iterations": cell.num_steps,
        "total_batch_size": cell.batch_tokens,
        "eval_every": 0,
        "sample_every": 0,
        "save_every": cell.save_every,
        "keep": 1,
        "final_documents": common.final_documents,
        "seed": cell.seed,
        "compile": "on" if cell.compile else "off",
        "device": common.device,
        "dtype": common.dtype,
        "threads": common.threads,
    }
    return {name: value for name, value in settings.items() if value is not None}


def command_of(settings: dict[str, Any], *, resume: bool) -> list[str]:
    """The command line of a cell, without the program: ``train base --run ...``."""
    words = ["train", "base"]
    for name, value in settings.items():
        words += [flag(name), str(value)]
    return [*words, "--resume"] if resume else words


def run_in_process(command: Sequence[str], *, log: Path, stop: StopSignals, tick: Callable[[float], None]) -> int:
    """Run ``firstlight`` with these words and wait; what it says is appended to ``log``. Returns its exit code (negative: a
    signal killed it).

    tick: called often with the seconds since the start. A signal to this process is passed on once as SIGTERM, on which a
    training run saves and ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "firstlight", *command],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=environment.child_environment({"PYTHONUNBUFFERED": "1"}),
            # A Ctrl-C goes to every process of the terminal; this one gets it from here, and once.
            start_new_session=True,
        )  # fmt: skip
        try:
            told = False
            while True:
                try:
                    return process.wait(timeout=POLL_S)
                except subprocess.TimeoutExpired:
                    tick(time.monotonic() - begun)
                if stop.requested and not told:
                    told = True
                    process.terminate()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


class StopSignals:
    """Whether a person or a scheduler asked for the end: the first signal is remembered, a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.requested: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM are remembered. Only the main thread may use it."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
