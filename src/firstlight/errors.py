"""The errors that a user may see. Each knows its exit code and may carry a hint that says what would be right.

    FirstlightError                 exit 1
    |-- ConfigError                 exit 2    a flag, a config file, or a combination of values
    |-- DataError                   exit 3    a corpus, a shard, a token store, a tokenizer
    |-- CheckpointError             exit 4    a checkpoint that is missing, damaged, or from another run
    |-- TrainingStopped             exit 5    a guard ended the run (NaN, no space, ...)
    `-- Interrupted                 exit 130  a signal, after a clean save

The command line prints them as one message without a traceback. `assert` is for our own mistakes only.
"""

from __future__ import annotations


class FirstlightError(Exception):
    """A mistake or condition that is reported to the user: ``what`` is wrong, and in ``hint`` what would be right.

    is_same_on_all_ranks: every process raises it with these words; one need report it. ends_at_once: after the report the process has to end by `os._exit`: a thread of a library waits for what will not come.
    """

    exit_code = 1
    is_same_on_all_ranks = False
    ends_at_once = False

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  {self.hint}" if self.hint else self.what


class ConfigError(FirstlightError):
    exit_code = 2


class DataError(FirstlightError):
    exit_code = 3


class CheckpointError(FirstlightError):
    exit_code = 4


class TrainingStopped(FirstlightError):
    exit_code = 5


class Interrupted(FirstlightError):
    exit_code = 130


class Problems:
    """Collect all mistakes of a configuration and raise them together.

    >>> problems = Problems()
    >>> problems.add("--depth 0 is too small", hint="the smallest is 1")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
        ...
    firstlight.errors.ConfigError: --depth 0 is too small
      the smallest is 1
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, what: str, *, hint: str = "") -> None:
        self._found.append((what, hint))

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self) -> None:
        """Raise one ConfigError that names every mistake, or return where there is none."""
        if not self._found:
            return
        if len(self._found) == 1:
            what, hint = self._found[0]
            raise ConfigError(what, hint=hint)
        lines = [f"{len(self._found)} things are wrong:"]
        for what, hint in self._found:
            lines.append(f"  - {what}" + (f"\n    {hint}" if hint else ""))
        raise ConfigError("\n".join(lines))
