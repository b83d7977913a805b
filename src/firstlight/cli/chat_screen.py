"""The chat in a terminal: what is typed, the commands, and answers as they come."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from firstlight.cli.sample import write
from firstlight.config import did_you_mean
from firstlight.errors import ConfigError, FirstlightError

if TYPE_CHECKING:
    from firstlight.recipes.chat_session import ChatSession
    from firstlight.runtime.console import Console
    from firstlight.tokens.conversation import Part

HELP = """\
/reset           begin a new conversation
/undo            take the last message and its answer back
/retry           another answer to the last message
/temp X          temperature: 0 is the likeliest token each time
/system TEXT     text in front of the conversation (nothing: none)
/save FILE       write the conversation as a line of JSON
/help            this list
/exit            end (as Ctrl-D)
A line that ends with \\ goes on in the next one; \"\"\" begins and ends a text of many lines; //text sends /text.
Ctrl-C stops an answer; what was said is kept. At the prompt it drops the line; a second one ends the chat."""

COMMANDS = ("/help", "/reset", "/undo", "/retry", "/temp", "/system", "/save", "/exit", "/quit")
QUOTES = '"""'
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class _Screen:
    """Shows an answer: text as it is, the tool's parts dimmed with a mark in front."""

    def __init__(self, *, has_colours: bool) -> None:
        self._dim, self._plain = (DIM, PLAIN) if has_colours else ("", "")
        self._kind = "text"
        self._at_line_start = True

    def show(self, piece: Part) -> None:
        if piece.kind != self._kind:
            self.end_line()
            self._kind = piece.kind
            if piece.kind != "text":
                self._raw(self._dim)
                write("python> " if piece.kind == "python" else "output> ")
        elif not piece.text:
            return
        write(piece.text)
        self._at_line_start = piece.text.endswith("\n")

    def end_line(self) -> None:
        """Be at the start of a line, with nothing dimmed."""
        if self._kind != "text":
            self._raw(self._plain)
            self._kind = "text"
        if not self._at_line_start:
            write("\n")
        self._at_line_start = True

    def note(self, text: str) -> None:
        """A line of ours, dimmed."""
        self.end_line()
        self._raw(self._dim)
        write(text)
        self._raw(self._plain)
        write("\n")

    def _raw(self, code: str) -> None:
        # Ours, and so not through `write`, which lets no control characters of the model pass.
        if code:
            print(code, end="", flush=True)


def talk(session: ChatSession, *, title: str, console: Console) -> None:
    """Read messages and answer them until the person ends it."""
    # Only its import gives `input` a history and line editing; no file is read or written.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    screen = _Screen(has_colours=console.is_terminal and sys.stdout.isatty())
    screen.note(f"{title}. /help lists the commands; Ctrl-D ends.")
    has_told_of_dropping = has_interrupted = False
    while True:
        try:
            text = _read_message()
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            write("\n")
            if has_interrupted:
                return
            # It may have been meant for an answer that ended just before.
            has_interrupted = True
            screen.note("(Ctrl-C again, or Ctrl-D, ends)")
            continue
        has_interrupted = False
        if not text.strip():
            continue
        try:
            if text.startswith("/") and not text.startswith("//"):
                again = _command(session, text, screen)
                if again is None:
                    return
                if not again:
                    continue
                text = again
            else:
                text = text.removeprefix("/") if text.startswith("//") else text
            num_dropped = _answer(session, text, screen)
            if num_dropped and not has_told_of_dropping:
                screen.note("(the context is full: from here on the oldest turns are left out; /reset begins anew)")
                has_told_of_dropping = True
        except FirstlightError as error:
            screen.end_line()
            print(f"error: {error}", file=sys.stderr, flush=True)


def _read_message() -> str:
    """One message: a line, lines joined by a backslash at their ends, or a block between triple quotes."""
    line = input("> ")
    if line.startswith(QUOTES):
        held = [line.removeprefix(QUOTES)]
        while not held[-1].rstrip().endswith(QUOTES):
            held.append(input(". "))
        held[-1] = held[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(held).strip("\n")
    held = [line]
    while held[-1].endswith("\\"):
        held[-1] = held[-1].removesuffix("\\")
        held.append(input(". "))
    return "\n".join(held)


def _command(session: ChatSession, text: str, screen: _Screen) -> str | None:
    """Obey a command. Returns a message to answer, "" for none, and None to end."""
    word, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if word in ("/exit", "/quit"):
        return None
    if word == "/help":
        screen.note(HELP)
    elif word == "/reset":
        session.reset()
        screen.note("(a new conversation)")
    elif word == "/undo":
        taken = session.undo()
        screen.note("(there is nothing to take back)" if taken is None else f"(taken back: {_short(taken)})")
    elif word == "/retry":
        taken = session.undo()
        if taken is not None:
            return taken
        screen.note("(there is nothing to answer again)")
    elif word == "/temp":
        _set_temperature(session, rest, screen)
    elif word == "/system":
        session.system = rest
        screen.note("(the system text is set)" if rest else "(no system text)")
    elif word == "/save":
        if not rest:
            raise ConfigError("/save needs a file", hint="/save talk.jsonl")
        session.save(Path(rest).expanduser())
        screen.note(f"(saved: {rest})")
    else:
        raise ConfigError(
            f"{word} is not a command", hint=did_you_mean(word, COMMANDS) or "/help lists them; //text sends /text"
        )
    return ""


def _set_temperature(session: ChatSession, text: str, screen: _Screen) -> None:
    from dataclasses import replace

    if text:
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(f"/temp {text} is not a number", hint="/temp 0.7") from None
        session.settings = replace(session.settings, temperature=value)
    screen.note(f"(temperature {session.settings.temperature:g})")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _answer(session: ChatSession, text: str, screen: _Screen) -> int:
    """Show the answer to a message; how many turns it was made without."""
    with _interrupts() as is_interrupted:
        reply = session.ask(text, on_piece=screen.show, should_stop=lambda: bool(is_interrupted))
    screen.end_line()
    if reply.finish_reason == "stopped":
        screen.note("(stopped)" if reply.parts else "(stopped before anything was said: the message is not kept)")
    elif reply.finish_reason != "end":
        screen.note(
            f"(ended after {reply.num_tokens:,} tokens: "
            + ("the longest answer that was asked for)" if reply.finish_reason == "length" else "the context is full)")
        )
    return reply.num_dropped_turns


@contextlib.contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Ctrl-C fills the list in place of raising, so that no step of the model is torn; a second one raises."""
    pressed: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
