"""Claims of cli/serve.py: what the command says, what it refuses, and how a signal ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from firstlight.cli.main import run
from firstlight.serve.running import open_socket


def test_all_mistakes_are_said_at_once(make_tiny_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_run()
    wrong = ["--port", "70000", "--max-rows", "0", "--queue", "-1", "--tools", "all", "--max-new-tokens", "0"]
    assert run(["serve", "tiny", *wrong, "--time-limit-s", "0", "--allow-origin", "*"]) == 2
    said = capsys.readouterr().err
    for flag in ("--port 70000", "--max-rows 0", "--queue -1", "--tools all", "--max-new-tokens 0", "--allow-origin *"):
        assert flag in said
    assert "Traceback" not in said


def test_a_port_in_use_is_exit_2(make_tiny_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_run()
    with open_socket("127.0.0.1", 0) as taken:
        assert run(["serve", "tiny", "--port", str(taken.getsockname()[1]), "--device", "cpu"]) == 2
    assert "is in use" in capsys.readouterr().err


def test_keys_that_cannot_be_are_refused(make_tiny_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_tiny_run()
    empty = tmp_path / "key.txt"
    empty.write_text("\n")
    for flags in (
        ["--api-key", ""], ["--api-key", "schlüssel"], ["--api-key-file", str(empty)],
        ["--api-key-file", str(made.path / "nothing")], ["--api-key", "a", "--api-key-file", str(empty)],
    ):  # fmt: skip
        assert run(["serve", "tiny", *flags]) == 2, flags
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_the_command_serves_and_a_signal_ends_it_well(make_tiny_run, tmp_path: Path) -> None:
    made = make_tiny_run()
    key = tmp_path / "key.txt"
    key.write_text("secret\n")
    command = [
        sys.executable, "-m", "firstlight", "serve", str(made.path), "--port", "0", "--device", "cpu", "--threads", "1",
        "--host", "0.0.0.0", "--api-key-file", str(key),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"NO_COLOR": "1"}
    )
    try:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+)/v1", said.replace("\n", ""))):
            line = process.stdout.readline()
            assert line, said
            said += line
        body = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{found[1]}/v1/completions", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["prompt_tokens"] == 2
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said + rest
    assert "the server has ended" in rest
    assert "Traceback" not in said + rest
