"""The command line as a whole: help without torch, mistakes without tracebacks, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from firstlight import __version__
from firstlight.cli import main
from firstlight.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingStopped

COMMANDS = (
    ["quickstart"], ["train", "base"], ["plan"], ["data", "fetch"], ["data", "import"], ["data", "info"],
    ["tokenizer", "train"], ["tokenizer", "eval"], ["tokenizer", "show"], ["eval", "bpb"], ["eval", "samples"], ["sample"],
    ["runs", "list"], ["runs", "show"], ["runs", "report"], ["doctor"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command, capsys):
    assert main.run([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: firstlight" in shown
    assert f"firstlight {' '.join(command)}" in shown.split("For example:")[1].split("─")[0]


def test_help_of_everything_names_every_group(capsys):
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("quickstart", "train", "plan", "data", "tokenizer", "eval", "sample", "runs", "doctor"):
        assert name in shown


def test_version(capsys):
    assert main.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "base", "--dept", "4"], "--depth"),
        (["trian", "base"], "train"),
        (["train", "base", "--depth", "four"], "four"),
        (["train", "base", "extra"], "extra"),
        (["train", "base", "--preset", "clasic"], "classic"),
    ],
)
def test_a_mistyped_command_line_is_exit_2_and_says_what_would_be_right(arguments, said, capsys):
    assert main.run(arguments) == 2
    output = capsys.readouterr()
    assert said in output.out + output.err
    assert "Traceback" not in output.out + output.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (DataError, 3), (CheckpointError, 4), (TrainingStopped, 5), (Interrupted, 130)],
)
def test_each_kind_of_error_has_its_exit_code_and_one_message(error, code, capsys, monkeypatch):
    def fail(arguments):
        raise error("what is wrong", hint="what would be right")

    monkeypatch.setattr(main, "app", fail)
    assert main.run([]) == code
    assert capsys.readouterr().err == "error: what is wrong\n  what would be right\n"


def test_ctrl_c_outside_training_is_exit_130(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupted)
    assert main.run([]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_module_and_console_script_are_the_same_command():
    shown = subprocess.run(
        [sys.executable, "-m", "firstlight", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == __version__


def test_flags_may_be_written_with_underscores_as_the_seed_does(capsys):
    seed = ["--depth=12", "--device_batch_size=32", "--total_batch_size=524288", "--num_iterations=10000", "--json"]
    assert main.run(["plan", *seed, "--max_seq_len=2048", "--dtype=fp32", "--device=cpu"]) in (0, 2)
    output = capsys.readouterr()
    # On a machine with little memory the plan may refuse the batch; the flags themselves must be known.
    assert "Unknown option" not in output.out + output.err
