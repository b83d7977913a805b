"""What a person sees while a command runs: lines, warnings, tables, progress bars.

One ``Console`` is made in a command's main function and passed down. Outside cli/ it is the only thing that prints.
Lines and tables go to standard output, warnings and bars to standard error; ranks above 0 say nothing. Bars are drawn
only where a person watches; in a pipe long work reports in single plain lines. Text that the terminal cannot show is
replaced, never a crash, and a reader that went away (``| head``) does not end a training run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from firstlight.runtime.metrics import strict_json

PIPE_HEARTBEAT_S = 30.0
"""In a pipe, long work says how far it is this often."""
QUIET_S = 2.0
"""In a pipe, work that was faster than this says nothing."""


@dataclass(frozen=True)
class StepLine:
    """The numbers of one training step, as the console shows them.

    step: updates done before this one. num_steps: planned updates, or None where the end is set by the clock.
    lr_multiplier and mfu: 0 to 1. progress_frac: part of the run that is done; step / num_steps where not given.
    None is for what is not known (shown as ``--``). skipped: why the update was refused, or None.
    """

    step: int
    num_steps: int | None
    loss_nats: float
    grad_norm: float
    lr_multiplier: float
    step_time_s: float
    tokens_per_s: float
    mfu: float | None
    elapsed_s: float
    eta_s: float | None
    progress_frac: float | None = None
    skipped: str | None = None

    @property
    def done_frac(self) -> float | None:
        if self.progress_frac is not None:
            return self.progress_frac
        return self.step / self.num_steps if self.num_steps else None

    def __str__(self) -> str:
        total = f"/{self.num_steps:05d}" if self.num_steps else ""
        percent = f" ({100 * self.done_frac:.2f}%)" if self.done_frac is not None else ""
        mfu = f"{100 * self.mfu:.2f}" if self.mfu is not None else "--"
        eta = f"{self.eta_s / 60:.1f}m" if self.eta_s is not None else "--"
        return (
            f"step {self.step:05d}{total}{percent} | loss: {self.loss_nats:.6f} | grad norm: {self.grad_norm:.4f}"
            f" | lrm: {self.lr_multiplier:.2f} | dt: {1000 * self.step_time_s:.2f}ms"
            f" | tok/sec: {self.tokens_per_s:,.0f} | mfu: {mfu} | total time: {self.elapsed_s / 60:.2f}m | eta: {eta}"
            + (f" | update refused: {self.skipped}" if self.skipped else "")
        )


def format_duration(seconds: float) -> str:
    """Seconds for people: ``8.4 s``, ``3 min 05 s``, ``2 h 07 min``, ``3 d 04 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def format_count(count: float) -> str:
    """A count for people: ``950``, ``12.3K``, ``4.56M``, ``1.23G``, ``7.8T`` (powers of 1000, three digits)."""
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        # 0.9995: what would round to 1000 of the smaller unit is 1 of this one.
        if abs(count) >= 0.9995 * power:
            scaled = count / power
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{unit}"
    return f"{count:.3g}" if count != int(count) else f"{int(count)}"


def format_bytes(num_bytes: float) -> str:
    """Bytes for people, in powers of 1024: ``512 B``, ``3.4 MiB``, ``78.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


class _Safe:
    """A text file that takes any text: characters outside its encoding become ``?``; a reader that left is
    forgotten.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._gone = False
        self.encoding = getattr(file, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if not self._gone:
            try:
                self._file.write(text.encode(self.encoding, "replace").decode(self.encoding, "replace"))
            except BrokenPipeError:
                self._gone = True
            except (OSError, ValueError):
                # A full disk under `> log`, or a file that is closed at exit: the run matters more than the line.
                pass
        return len(text)

    def flush(self) -> None:
        if not self._gone:
            try:
                self._file.flush()
            except BrokenPipeError:
                self._gone = True
            except (OSError, ValueError):
                pass

    def isatty(self) -> bool:
        try:
            return bool(self._file.isatty())
        except (AttributeError, ValueError):
            return False

    def fileno(self) -> int:
        return self._file.fileno()


class Console:
    """Says things to a person, or nothing on ranks above 0.

    is_terminal: a person watches (draw bars and colours). file: where lines and tables go, standard output where not
    given (with ``--json`` pass standard error). error_file: where warnings and bars go, standard error where not given.
    """

    def __init__(
        self,
        *,
        is_main: bool = True,
        is_terminal: bool = False,
        file: TextIO | None = None,
        error_file: TextIO | None = None,
    ) -> None:
        self.is_main = is_main
        self.is_terminal = is_terminal and is_main
        self._out = _Safe(file if file is not None else sys.stdout)
        self._err = _Safe(error_file if error_file is not None else sys.stderr)
        self._warned: set[str] = set()
        self._bars: Any = None  # rich.progress.Progress while at least one bar is shown
        self._num_bars = 0

    def say(self, text: str = "") -> None:
        """Print one line (or several) on standard output."""
        if not self.is_main:
            return
        if self._bars is not None and self._out.isatty():
            # Above the bars, which would otherwise be torn.
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        self._out.write(text + "\n")
        self._out.flush()

    def warn(self, text: str) -> None:
        """Print a warning on standard error. The same words are said once."""
        if not self.is_main or text in self._warned:
            return
        self._warned.add(text)
        if self._bars is not None:
            self._bars.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        elif self.is_terminal:
            self._err.write(f"\x1b[33mwarning:\x1b[0m {text}\n")
            self._err.flush()
        else:
            self._err.write(f"warning: {text}\n")
            self._err.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
        """Print rows in aligned columns: numbers to the right, text to the left; None is shown as ``-``."""
        if self.is_main:
            self.say(format_table(columns, rows, title=title))

    def json(self, value: Any) -> None:
        """Print one strict JSON object on standard output (NaN and infinities as null)."""
        self.say(json.dumps(strict_json(value)[0], indent=2, ensure_ascii=False, allow_nan=False))

    @contextmanager
    def progress(self, label: str, total: float | None = None, *, unit: str = "") -> Iterator[Progress]:
        """Show how far a long piece of work is.

        ``with console.progress("tokenising", 40, unit="shards") as bar: ... bar.advance()``

        A bar with the time left on a terminal. In a pipe: a line every half minute and one at the end, if it took
        over 2 s.
        """
        bar = Progress(self, label, total, unit)
        bar.start()
        try:
            yield bar
        except BaseException:
            bar.finish(ended_early=True)
            raise
        bar.finish(ended_early=False)

    @contextmanager
    def training(
        self, num_steps: int | None, *, every_steps: int | None = None, every_s: float = 5.0
    ) -> Iterator[StepPrinter]:
        """Show a training run: ``with console.training(1000) as steps: steps.show(StepLine(...))``.

        On a terminal every step moves a bar. Lines are printed for the first step, then each ``every_steps``-th, or
        where that is not given at most one in ``every_s`` seconds; and for every refused update and for the last step
        shown.
        """
        printer = StepPrinter(self, num_steps, every_steps, every_s)
        try:
            yield printer
        finally:
            printer.finish()

    # Bars: one rich display for all, because a terminal has one bottom.

    def _add_bar(self, label: str, total: float | None) -> Any:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress

        if self._bars is None:
            screen = RichConsole(file=self._err, force_terminal=True)  # pyrefly: ignore[bad-argument-type]
            self._bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=screen,
                transient=True,
                expand=True,
                redirect_stdout=False,
                redirect_stderr=False,
                refresh_per_second=4,
            )
            self._bars.start()
        self._num_bars += 1
        return self._bars.add_task(label, total=total, note="")

    def _remove_bar(self, task: Any) -> None:
        self._bars.remove_task(task)
        self._num_bars -= 1
        if self._num_bars == 0:
            self._bars.stop()
            self._bars = None


class Progress:
    """How far one piece of work is. Made by ``Console.progress``."""

    def __init__(self, console: Console, label: str, total: float | None, unit: str) -> None:
        self.label = label
        self.total = total
        self.done = 0.0
        self._console = console
        self._unit = f" {unit}" if unit else ""
        self._task: Any = None
        self._started = self._said = time.monotonic()

    def start(self) -> None:
        if self._console.is_terminal:
            self._task = self._console._add_bar(self.label, self.total)

    def advance(self, amount: float = 1) -> None:
        """Another ``amount`` is done."""
        self.done += amount
        now = time.monotonic()
        if self._task is not None:
            self._console._bars.update(self._task, completed=self.done, total=self.total, note=self._note(now))
        elif now - self._said >= PIPE_HEARTBEAT_S:
            self._said = now
            self._console.say(f"{self.label}: {self._note(now)}")

    def set_total(self, total: float) -> None:
        """The whole amount, where it becomes known only on the way."""
        self.total = total

    def finish(self, *, ended_early: bool) -> None:
        took_s = time.monotonic() - self._started
        if self._task is not None:
            self._console._remove_bar(self._task)
            self._task = None
        if ended_early:
            self._console.say(f"{self.label}: ended early, {self._amount()} after {format_duration(took_s)}")
        elif took_s >= QUIET_S:
            self._console.say(f"{self.label}: {format_count(self.done)}{self._unit} in {format_duration(took_s)}")

    def _amount(self) -> str:
        of = f" of {format_count(self.total)}" if self.total is not None else ""
        return f"{format_count(self.done)}{of}{self._unit}"

    def _note(self, now: float) -> str:
        left = ""
        if self.total and 0 < self.done <= self.total:
            left_s = (now - self._started) * (self.total - self.done) / self.done
            left = f", {format_duration(left_s)} left"
        return self._amount() + left


class StepPrinter:
    """Shows training steps. Made by ``Console.training``."""

    def __init__(self, console: Console, num_steps: int | None, every_steps: int | None, every_s: float) -> None:
        self._console = console
        self._every_steps = every_steps
        self._every_s = every_s
        self._printed_at: float | None = None
        self._unprinted: StepLine | None = None
        self._task = console._add_bar("training", 1.0) if console.is_terminal else None

    def show(self, line: StepLine) -> None:
        """Show one step: always in the bar, as a printed line when one is due."""
        if not self._console.is_main:
            return
        if self._task is not None:
            left = f" · {format_duration(line.eta_s)} left" if line.eta_s is not None else ""
            note = f"loss {line.loss_nats:.3f} · {line.tokens_per_s:,.0f} tok/s{left}"
            if "utf" not in self._console._err.encoding.lower():
                note = note.replace("·", "|")
            self._console._bars.update(self._task, completed=line.done_frac or 0.0, note=note)
        if self._is_due(line):
            self._print(line)
        else:
            self._unprinted = line

    def _is_due(self, line: StepLine) -> bool:
        if self._printed_at is None or line.skipped:
            return True
        if self._every_steps:
            return line.step % self._every_steps == 0
        return time.monotonic() - self._printed_at >= self._every_s

    def _print(self, line: StepLine) -> None:
        self._console.say(str(line))
        self._printed_at = time.monotonic()
        self._unprinted = None

    def finish(self) -> None:
        if self._unprinted is not None:
            self._print(self._unprinted)
        if self._task is not None:
            self._console._remove_bar(self._task)
            self._task = None


def format_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> str:
    """Rows as text in aligned columns, a rule under the heads. Wide characters (CJK, emoji) count as two."""
    from rich.cells import cell_len

    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([cell_len(head), *(cell_len(row[i]) for row in cells)]) for i, head in enumerate(columns)]
    is_number = [
        any(isinstance(row[i], (int, float)) and not isinstance(row[i], bool) for row in rows)
        and all(row[i] is None or isinstance(row[i], (int, float)) for row in rows)
        for i in range(len(columns))
    ]

    def line(values: Sequence[str]) -> str:
        parts = []
        for value, width, right in zip(values, widths, is_number, strict=True):
            pad = " " * (width - cell_len(value))
            parts.append(pad + value if right else value + pad)
        return "  ".join(parts).rstrip()

    head = [title] if title else []
    return "\n".join([*head, line(columns), "  ".join("-" * width for width in widths), *(line(row) for row in cells)])


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case _:
            return " ".join(str(value).split())
