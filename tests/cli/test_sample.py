"""Claims of cli/sample.py, through the command line that users type."""

from __future__ import annotations

import io
import json
import sys

import pytest

from firstlight.cli.main import run
from firstlight.cli.sample import printable


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_the_prompt_and_its_continuation_are_shown(make_tiny_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_run()
    assert run(["sample", "tiny", "-p", "hello", "--max-new-tokens", "5", "--device", "cpu", "--dtype", "fp32"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("hello")
    assert out.endswith("\n")


def test_json_is_one_object_and_nothing_else(make_tiny_run, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_tiny_run(steps=(3, 4))
    arguments = [
        "--max-new-tokens",
        "5",
        "--num-samples",
        "3",
        "--seed",
        "9",
        "--json",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
    ]
    assert run(["sample", "tiny", "-p", "hello", *arguments]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["run"], first["step"], first["prompt"]) == ("tiny", 4, "hello")
    assert first["checkpoint"].startswith(str(made.path))
    assert len(first["samples"]) == 3
    for sample in first["samples"]:
        assert sample["num_tokens"] <= 5
        assert sample["stop_reason"] in ("end", "length")
    assert run(["sample", "tiny", "-p", "hello", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == first["samples"]
    assert run(["sample", "tiny", "-p", "hello", "--checkpoint", "3", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3


def test_a_dash_reads_standard_input(make_tiny_run, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_run()
    monkeypatch.setattr(sys, "stdin", Stdin("größe\n".encode()))
    assert run(["sample", "tiny", "-p", "-", "--max-new-tokens", "2", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "größe"


def test_standard_input_that_is_not_utf8_is_exit_3(make_tiny_run, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_run()
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xff\xfe"))
    assert run(["sample", "tiny", "-p", "-"]) == 3
    assert "not UTF-8" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_cut_with_a_warning(make_tiny_run, capsys) -> None:
    make_tiny_run(context=32)
    assert run(["sample", "tiny", "-p", "x" * 100, "--max-new-tokens", "4", "--device", "cpu"]) == 0
    # 33 tokens fit with the last one unread: BOS, 28 of the prompt, 4 new ones.
    assert "the first 72 tokens of the prompt were left out" in capsys.readouterr().err


def test_an_unknown_run_is_exit_2_with_the_nearest_name(make_tiny_run, capsys) -> None:
    make_tiny_run()
    assert run(["sample", "tinny", "-p", "a"]) == 2
    assert "did you mean tiny" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_exit_4(make_tiny_run, capsys) -> None:
    make_tiny_run(steps=())
    assert run(["sample", "tiny", "-p", "a", "--device", "cpu"]) == 4
    assert "no good checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--temperature", "-1"], ["--max-new-tokens", "0"], ["--num-samples", "0"], ["--top-k", "-3"]]
)
def test_values_without_meaning_are_exit_2(make_tiny_run, capsys, wrong: list[str]) -> None:
    make_tiny_run()
    assert run(["sample", "tiny", "-p", "a", "--device", "cpu", *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err


def test_top_k_zero_is_no_filter(make_tiny_run, capsys) -> None:
    make_tiny_run()
    assert run(["sample", "tiny", "-p", "a", "--top-k", "0", "--max-new-tokens", "3", "--device", "cpu"]) == 0


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9bc\r\t\n é🐶") == "a�]0;title�b�c�\t\n é🐶"
