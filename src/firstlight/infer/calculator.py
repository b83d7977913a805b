"""The calculator that a chat model calls: small Python programs, run by an interpreter of its own and never by Python.

pydantic-monty interprets a subset of Python in worker processes that have no files, no network and no modules but a few pure
ones. Time, memory, recursion and output are limited; whatever goes wrong comes back as a short text, as an answer that the
model can read. The clock stands still and random numbers are the same each time, so the same code gives the same text.
"""

from __future__ import annotations

import datetime
import threading
from types import TracebackType
from typing import Any

import pydantic_monty

MAX_OUTPUT_CHARS = 500
MAX_CODE_CHARS = 4000
TIME_LIMIT_S = 1.0
MEMORY_LIMIT_BYTES = 64 * 2**20
RECURSION_LIMIT = 200
CUT_MARK = " ... (cut)"

# Beyond the time limit by this, the worker itself is ended and replaced.
_GRACE_S = 0.5

_STILL: pydantic_monty.OSPolicy = {
    "sleep": "zero",
    "datetime": datetime.datetime(2026, 1, 1),
    "random_start": {"seed": 0},
}


class Calculator:
    """Runs code; use it in a ``with``, or call `close`. The worker process starts with the first code.

    time_limit_s, memory_limit_bytes: of one run. max_output_chars: longer text is cut, and says so. num_workers: processes, for
    as many threads that call it.
    """

    def __init__(
        self,
        *,
        time_limit_s: float = TIME_LIMIT_S,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        max_output_chars: int = MAX_OUTPUT_CHARS,
        num_workers: int = 1,
    ) -> None:
        self._time_limit_s = time_limit_s
        self._memory_limit_bytes = memory_limit_bytes
        self._max_output_chars = max_output_chars
        self._num_workers = num_workers
        self._starting = threading.Lock()
        self._pool: pydantic_monty.Monty | None = None

    def run(self, code: str) -> str:
        """What the code prints, and the value of its last expression; an error as ``NameOfIt: what``. Never raises for code.

        Nothing is kept from one run to the next.
        """
        if len(code) > MAX_CODE_CHARS:
            return f"SyntaxError: the code is longer than {MAX_CODE_CHARS} characters"
        pool = self._started()
        printed = _Printed(self._max_output_chars)
        try:
            value = self._value(pool, code, printed)
            last = "" if value is None else str(value)
        except pydantic_monty.MontyError as error:
            last = self._error_text(error)
        except (ValueError, RecursionError, OverflowError, MemoryError) as error:
            # The value was found, and is nothing that can be shown: a number of too many digits.
            last = f"{type(error).__name__}: {error}"
        if printed.is_too_long:
            last = ""
        text = printed.text.removesuffix("\n") if not last else printed.text + last
        return self._cut(text)

    def _started(self) -> pydantic_monty.Monty:
        with self._starting:
            if self._pool is None:
                pool = pydantic_monty.Monty(
                    max_processes=self._num_workers,
                    request_timeout=self._time_limit_s + _GRACE_S,
                    feed_duration_limit_grace=_GRACE_S,
                )
                pool.__enter__()
                self._pool = pool
            return self._pool

    def _value(self, pool: pydantic_monty.Monty, code: str, printed: _Printed) -> Any:
        limits: pydantic_monty.ResourceLimits = {
            "max_feed_duration_secs": self._time_limit_s,
            "max_memory": self._memory_limit_bytes,
            "max_recursion_depth": RECURSION_LIMIT,
        }
        with pool.checkout(limits=limits, os_policy=_STILL) as session:
            return session.feed_run(code, print_callback=printed.take)

    def _error_text(self, error: pydantic_monty.MontyError) -> str:
        if isinstance(error, pydantic_monty.MontyCrashedError):
            return self._too_long() if error.timed_out else "MemoryError: the interpreter ended"
        if isinstance(error, pydantic_monty.MontySyntaxError | pydantic_monty.MontyRuntimeError):
            name, _, what = error.display("type-msg").strip().partition(":")
            # The interpreter's own words name times and bytes that differ from run to run.
            if name == "TimeoutError" and "limit exceeded" in what:
                return self._too_long()
            if name == "MemoryError":
                return f"MemoryError: more than {self._memory_limit_bytes // 2**20} MiB"
            return f"{name}:{what}" if what else name
        return f"{type(error).__name__}: {error}"

    def _too_long(self) -> str:
        return f"TimeoutError: it ran longer than {self._time_limit_s:g} s"

    def _cut(self, text: str) -> str:
        limit = self._max_output_chars
        return text if len(text) <= limit else text[: max(0, limit - len(CUT_MARK))] + CUT_MARK

    def close(self) -> None:
        """End the worker process. A later run starts a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

    def __enter__(self) -> Calculator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Printed:
    """Printed text up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.text = ""

    @property
    def is_too_long(self) -> bool:
        return len(self.text) > self._limit

    def take(self, stream: str, text: str) -> None:
        self.text += text[: self._limit + 1 - len(self.text)]
