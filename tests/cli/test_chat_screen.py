"""Claims about the terminal's side of a chat, with typed lines and a session written down by hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from firstlight.cli.chat_screen import talk
from firstlight.errors import ConfigError
from firstlight.recipes.chat_session import ChatSession, Reply, Settings
from firstlight.runtime.console import Console
from firstlight.tokens.conversation import Message, Part


class Scripted(ChatSession):
    """A session without a model: an answer repeats the message."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.system = ""
        self.messages = []
        self.num_dropped = 0
        self.asked: list[str] = []
        self.parts: tuple[Part, ...] | None = None
        self.before_answer: Callable[[], None] = lambda: None

    def ask(self, text: str, *, on_piece=lambda piece: None, should_stop=lambda: False) -> Reply:
        if len(text) > 1000:
            raise ConfigError("the message has too many tokens")
        self.asked.append(text)
        self.before_answer()
        parts = self.parts or (Part("text", f"you said {text}"),)
        for part in parts:
            on_piece(part)
        self.messages += [Message.of("user", text), Message("assistant", parts)]
        return Reply(parts, 3, "stopped" if should_stop() else "end", self.num_dropped, 9)


@pytest.fixture
def session() -> Scripted:
    return Scripted()


@pytest.fixture
def typed(session: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types lines, then Ctrl-D; returns what was shown."""

    def type_lines(*lines: str | type[BaseException]) -> str:
        waiting = list(lines)

        def read(prompt: str = "") -> str:
            line = waiting.pop(0) if waiting else EOFError
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        talk(session, title="tiny", console=Console())
        found = capsys.readouterr()
        return found.out + found.err

    return type_lines


def test_messages_are_answered_until_the_end_of_input(session: Scripted, typed: Callable[..., str]) -> None:
    shown = typed("hello", "", "   ", "again")
    assert session.asked == ["hello", "again"]
    assert "you said hello\n" in shown
    assert "you said again\n" in shown


@pytest.mark.parametrize("end", ["/exit", "/quit", EOFError])
def test_ways_to_end(session: Scripted, typed: Callable[..., str], end: str | type[BaseException]) -> None:
    typed("one", end, "two")
    assert session.asked == ["one"]


def test_one_ctrl_c_at_the_prompt_drops_the_line_and_two_in_a_row_end(
    session: Scripted, typed: Callable[..., str]
) -> None:
    shown = typed("one", KeyboardInterrupt, "two", "begun\\", KeyboardInterrupt, KeyboardInterrupt, "three")
    assert session.asked == ["one", "two"]
    assert shown.count("(Ctrl-C again, or Ctrl-D, ends)") == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (['"""first', "", 'last"""'], "first\n\nlast"),
        (['"""', "x = 1\\", '"""'], "x = 1\\"),
        (['"""one line"""'], "one line"),
        (["//help me"], "/help me"),
        ([" /help"], " /help"),
    ],
)
def test_messages_of_many_lines(session: Scripted, typed: Callable[..., str], lines: list[str], message: str) -> None:
    typed(*lines)
    assert session.asked == [message]


def test_undo_retry_and_reset(session: Scripted, typed: Callable[..., str]) -> None:
    shown = typed("/undo", "/retry", "one", "two", "/undo", "/retry", "/reset", "/retry")
    assert session.asked == ["one", "two", "one"]
    assert session.messages == []
    assert "nothing to take back" in shown
    assert "taken back: two" in shown
    assert "nothing to answer again" in shown


def test_settings_are_changed_and_wrong_ones_refused(session: Scripted, typed: Callable[..., str]) -> None:
    shown = typed("/temp", "/temp 0.25", "/temp -1", "/temp warm", "/system be nice", "hello")
    assert session.settings.temperature == 0.25
    assert session.system == "be nice"
    assert "(temperature 0.7)" in shown
    assert "temperature -1.0 is not possible" in shown
    assert "/temp warm is not a number" in shown
    assert session.asked == ["hello"]
    typed("/system")
    assert session.system == ""


def test_mistakes_are_one_message_and_the_talk_goes_on(session: Scripted, typed: Callable[..., str]) -> None:
    shown = typed("/rest", "/xyzzy", "/save", "x" * 1001, "hello")
    assert "error: /rest is not a command\n  did you mean '/reset'?" in shown
    assert "error: /xyzzy is not a command\n  /help lists them" in shown
    assert "error: /save needs a file" in shown
    assert "error: the message has too many tokens" in shown
    assert "Traceback" not in shown
    assert session.asked == ["hello"]


def test_help_names_every_command(typed: Callable[..., str]) -> None:
    shown = typed("/help")
    for word in ("/reset", "/undo", "/retry", "/temp", "/system", "/save", "/help", "/exit", "Ctrl-C"):
        assert word in shown


def test_saving(session: Scripted, typed: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    shown = typed("/save " + str(path), "hello", "/save " + str(path), "/save " + str(path))
    assert path.read_text().startswith('{"messages": [{"role": "user", "content": "hello"}')
    assert shown.count("saved: ") == 1
    assert "nothing to save yet" in shown
    assert f"{path} exists" in shown


def test_calls_of_the_tool_are_marked_and_control_characters_do_not_pass(
    session: Scripted, typed: Callable[..., str]
) -> None:
    session.parts = (Part("text", "a\x1b[31m"), Part("python", "6*7"), Part("output", "42"), Part("text", "\x07b"))
    shown = typed("x")
    assert "a\ufffd[31m\npython> 6*7\noutput> 42\n\ufffdb\n" in shown
    assert "\x1b" not in shown, "no colours in a pipe"


def test_a_full_context_is_noted_once(session: Scripted, typed: Callable[..., str]) -> None:
    session.num_dropped = 2
    assert typed("a", "b", "c").count("the oldest turns are left out") == 1


def test_ctrl_c_in_an_answer_stops_it_and_the_talk_goes_on(session: Scripted, typed: Callable[..., str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    session.before_answer = lambda: os.kill(os.getpid(), signal.SIGINT)
    shown = typed("long", "/exit")
    assert "(stopped)" in shown
    assert len(session.messages) == 2, "what was said is kept"
    assert signal.getsignal(signal.SIGINT) is before
