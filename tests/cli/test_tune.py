"""`firstlight train mid`, `sft` and `rl`: flags and TOML files reach the recipe of their stage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from firstlight.cli import main
from firstlight.recipes import mid, rl, sft

STAGES = {"mid": (mid, "train_mid"), "sft": (sft, "train_sft"), "rl": (rl, "train_rl")}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict:
    calls: dict = {}
    for stage, (module, name) in STAGES.items():
        monkeypatch.setattr(
            module, name, lambda settings, *, given, stage=stage: calls.setdefault(stage, (settings, given))
        )
    return calls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["firstlight", "train", *arguments])
    return main.run(["train", *arguments])


@pytest.mark.parametrize("stage", STAGES)
def test_flags_reach_the_recipe_and_the_given_ones_are_known(called, monkeypatch, stage):
    assert run(monkeypatch, stage, "--init", "mine", "--lr_frac=0.1", "--num-iterations", "7", "--name", "new") == 0
    settings, given = called[stage]
    assert (settings.init, settings.lr_frac, settings.num_iterations, settings.run) == ("mine", 0.1, 7, "new")
    assert given == {"init", "lr_frac", "num_iterations", "run"}


def test_each_stage_has_defaults_of_its_own(called, monkeypatch):
    for stage in STAGES:
        run(monkeypatch, stage, "--init", "mine")
    assert called["mid"][0].data == "builtin-chat:0.6,text:0.4"
    assert called["sft"][0].data == "builtin-chat"
    assert called["mid"][0].lr_frac > called["sft"][0].lr_frac > called["rl"][0].lr_frac


def test_a_file_may_say_it_all_and_unknown_keys_are_named(called, monkeypatch, tmp_path: Path, capsys):
    file = tmp_path / "sft.toml"
    file.write_text('init = "mine"\nepochs = 2.0\n')
    assert run(monkeypatch, "sft", "--config", str(file), "--too-long", "skip") == 0
    settings, given = called["sft"]
    assert (settings.init, settings.epochs, settings.too_long) == ("mine", 2.0, "skip")
    assert {"init", "epochs", "too_long"} <= given
    file.write_text("epoch = 2.0\n")
    assert run(monkeypatch, "sft", "--config", str(file)) == 2
    message = capsys.readouterr().err
    assert "epochs" in message
    assert "Traceback" not in message


def test_a_setting_of_another_stage_is_refused(called, monkeypatch, capsys):
    assert run(monkeypatch, "mid", "--init", "mine", "--prompts-per-step", "4") == 2
    assert "prompts-per-step" in capsys.readouterr().err + capsys.readouterr().out
