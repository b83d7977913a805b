"""Claims of cli/chat.py, through the command line that users type, in a pipe and in a terminal."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from firstlight.cli.main import run

QUIET = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]


class Pipe:
    """Standard input that is no terminal."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def chat_run(make_tiny_run: Callable[..., object]) -> object:
    """A run that says it has learned to chat."""
    from firstlight.recipes.record import read_run, write_run

    made = make_tiny_run(context=64)
    write_run(made.path, replace(read_run(made.path), recipe="sft"))
    return made


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr(sys, "stdin", Pipe(content))


def test_one_question_has_only_the_answer_on_standard_output(chat_run, capsys) -> None:
    arguments = ["chat", "tiny", "-p", "hello", "--max-new-tokens", "6", *QUIET]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["step"], found["message"]) == ("tiny", 3, "hello")
    assert found["finish_reason"] in ("end", "length")
    assert 1 <= found["num_tokens"] <= 6
    # BOS, user start, 5 bytes, user end, assistant start.
    assert found["num_prompt_tokens"] == 9
    assert run(arguments) == 0
    shown = capsys.readouterr()
    from firstlight.cli.sample import printable

    assert shown.out == printable(found["answer"]) + "\n"
    assert "base model" not in shown.err


def test_a_base_model_is_named_one(make_tiny_run, capsys) -> None:
    make_tiny_run(context=64)
    assert run(["chat", "tiny", "-p", "hello", "--max-new-tokens", "3", *QUIET]) == 0
    assert "tiny is a base model: it continues texts and has not learned to chat" in capsys.readouterr().err


def test_standard_input_is_one_message_or_one_a_line(chat_run, capsys, typed: Callable[[bytes], None]) -> None:
    typed("één\ntwo\n".encode())
    assert run(["chat", "tiny", "--max-new-tokens", "3", "--json", *QUIET]) == 0
    assert json.loads(capsys.readouterr().out)["message"] == "één\ntwo"
    typed(b"one\n\ntwo\n")
    assert run(["chat", "tiny", "--max-new-tokens", "3", "--json", "--lines", *QUIET]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [turn["message"] for turn in turns] == ["one", "two"]
    assert turns[1]["num_prompt_tokens"] > turns[0]["num_prompt_tokens"] + 5, "the second line goes on from the first"


def test_a_long_talk_warns_once_that_turns_were_left_out(chat_run, capsys, typed: Callable[[bytes], None]) -> None:
    typed(b"0123456789\n" * 8)
    assert run(["chat", "tiny", "--max-new-tokens", "3", "--lines", *QUIET]) == 0
    assert capsys.readouterr().err.count("the oldest turns are left out") == 1


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["-p", "  "], b"", "the message is empty"),
        ([], b"\n", "the message is empty"),
        (["--lines"], b"\n\n", "the message is empty"),
        (["-p", "x" * 100], b"", "the message has 104 tokens, and the context of 64 has room for 49"),
        (["-p", "a", "--temperature", "-1"], b"", "temperature -1.0"),
        (["-p", "a", "--max-new-tokens", "0"], b"", "max_new_tokens 0"),
        (["-p", "a", "--lines"], b"", "--lines reads standard input"),
    ],
)
def test_mistakes_are_exit_2(chat_run, capsys, typed, arguments: list[str], content: bytes, message: str) -> None:
    typed(content)
    assert run(["chat", "tiny", *arguments, *QUIET]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_run_and_bytes_that_are_no_text(chat_run, capsys, typed: Callable[[bytes], None]) -> None:
    assert run(["chat", "tinny", "-p", "a", *QUIET]) == 2
    assert "did you mean tiny" in capsys.readouterr().err
    typed(b"\xff\xfe")
    assert run(["chat", "tiny", *QUIET]) == 3


class Terminal:
    """A program at the other end of a pseudo-terminal."""

    def __init__(self, arguments: list[str]) -> None:
        import pty

        self._fd, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "firstlight", *arguments],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True, env={**os.environ, "TERM": "xterm"},
            # A job in the background of a shell ignores it, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        os.close(inner)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, *, since: int = 0) -> int:
        """Read until a text is shown; where it ends."""
        deadline = time.monotonic() + 240
        while text not in self.shown[since:]:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.shown[-2000:]}"
            if select.select([self._fd], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._fd, 65536).decode("utf-8", "replace")
                except OSError:
                    assert text in self.shown[since:], self.shown[-2000:]
        return self.shown.index(text, since) + len(text)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=60)
        os.close(self._fd)


@pytest.fixture
def terminal() -> Iterator[Callable[[list[str]], Terminal]]:
    opened: list[Terminal] = []

    def start(arguments: list[str]) -> Terminal:
        opened.append(Terminal(arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


class NoOptimizer:
    """An optimizer without state."""

    def state_tensors(self) -> dict:
        return {}


def save_model_that_never_ends(path: Path, *, context: int) -> None:
    """A checkpoint whose likeliest next token is always the letter a."""
    import torch

    from firstlight.model.gpt import GPT, GPTConfig
    from firstlight.train.checkpoint import save_checkpoint

    model = GPT(GPTConfig(265, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=context))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "wte" in name else 0.0)
        model.lm_head.weight[97] = 1.0
    save_checkpoint(path / "checkpoints", step=9, model=model, optimizer=NoOptimizer(), state={"step": 9})


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_talk_in_a_terminal(make_tiny_run, terminal: Callable[[list[str]], Terminal], tmp_path: Path) -> None:
    """Ctrl-C in an answer stops it, what was said is kept; at the prompt two of them end."""
    made = make_tiny_run(context=30_000, steps=())
    save_model_that_never_ends(made.path, context=30_000)
    screen = terminal(["chat", "tiny", "--temperature", "0", "--max-new-tokens", "30000", *QUIET])
    at = screen.wait_for("> ", since=screen.wait_for("Ctrl-D ends."))
    screen.type("hello\\\r")
    screen.wait_for(". ", since=at)
    screen.type("there\r")
    at = screen.wait_for("aaa", since=at)
    os.kill(screen.process.pid, signal.SIGINT)
    at = screen.wait_for("(stopped)", since=at)
    at = screen.wait_for("> ", since=at)
    saved = tmp_path / "talk.jsonl"
    screen.type(f"/save {saved}\r")
    at = screen.wait_for("> ", since=screen.wait_for("saved:", since=at))
    user, assistant = json.loads(saved.read_text())["messages"]
    assert user == {"role": "user", "content": "hello\nthere"}
    assert set(assistant["content"]) == {"a"}
    # A signal between the prompt and the wait behind it is noticed with the next key only (CPython's readline module).
    time.sleep(0.5)
    os.kill(screen.process.pid, signal.SIGINT)
    at = screen.wait_for("> ", since=screen.wait_for("Ctrl-C again", since=at))
    time.sleep(0.5)
    os.kill(screen.process.pid, signal.SIGINT)
    assert screen.process.wait(timeout=120) == 0
    assert "Traceback" not in screen.shown
