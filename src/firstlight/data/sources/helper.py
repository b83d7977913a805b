"""Half of the reading in another process: a module of ours run as a program, which takes jobs and gives answers as JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Helper(Generic[T]):
    """Runs ``python -m module`` on jobs while this process does something else.

    jobs: what JSON can hold, one a line of its standard input. read: an answer, which is a JSON object, to a result.
    """

    def __init__(self, module: str, jobs: Iterable[Any], read: Callable[[dict[str, Any]], T]) -> None:
        self._command = [sys.executable, "-m", module]
        self._jobs = "".join(json.dumps(job) + "\n" for job in jobs)
        self._read = read
        self._found: list[T] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def results(self) -> list[T]:
        """Wait, and give the results in order; fewer than were asked for where the process ended early."""
        self._thread.join()
        return self._found

    def _run(self) -> None:
        try:
            # A small child that ends when its input does; its warnings are not the user's business.
            done = subprocess.run(
                self._command, input=self._jobs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        except OSError:
            return
        for line in done.stdout.splitlines():
            try:
                answer = json.loads(line)
            except ValueError:
                return
            self._found.append(self._read(answer))
