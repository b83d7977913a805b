"""`firstlight train base`: which flags count as given, TOML files, two horizons, resume with changed settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

from firstlight.cli import main, train
from firstlight.recipes import base as recipe
from firstlight.recipes.settings import HORIZONS, RESUME_MAY_CHANGE, BaseSettings, RunSettings, flag, setting_names


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list:
    calls: list = []
    monkeypatch.setattr(recipe, "train_base", lambda settings, *, given: calls.append((settings, given)))
    return calls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    line = ["train", "base", *arguments]
    monkeypatch.setattr(sys, "argv", ["firstlight", *line])
    return main.run(line)


def test_flags_reach_the_recipe_and_the_given_ones_are_known(called, monkeypatch):
    assert run(monkeypatch, "--depth", "3", "--num_iterations=7", "--no-resume") == 0
    settings, given = called[0]
    assert (settings.depth, settings.num_iterations, settings.resume) == (3, 7, False)
    assert given == {"depth", "num_iterations", "resume"}


def test_name_is_run_for_torchrun_and_two_names_are_refused(called, monkeypatch, capsys):
    assert run(monkeypatch, "--name", "mine") == 0
    settings, given = called[0]
    assert settings.run == "mine"
    assert "run" in given
    assert run(monkeypatch, "--name", "mine", "--run", "other") == 2
    assert "two runs" in capsys.readouterr().err


def test_toml_file_is_read_and_flags_win(called, monkeypatch, tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('depth = 6\nseed = 3\ndata = "texts"\n')
    assert run(monkeypatch, "--config", str(file), "--depth", "2") == 0
    settings, given = called[0]
    assert (settings.depth, settings.seed, settings.data) == (2, 3, "texts")
    assert {"depth", "seed", "data"} <= given


def test_unknown_key_in_a_toml_file_is_named_with_its_file(called, monkeypatch, tmp_path: Path, capsys):
    file = tmp_path / "run.toml"
    file.write_text("dept = 6\n")
    assert run(monkeypatch, "--config", str(file)) == 2
    message = capsys.readouterr().err
    assert "dept" in message
    assert "depth" in message
    assert "run.toml" in message
    assert not called


def test_two_horizons_are_refused_by_name(monkeypatch, capsys):
    assert run(monkeypatch, "--minutes", "5", "--num-iterations", "100") == 2
    message = capsys.readouterr().err
    assert "--minutes 5" in message
    assert "--num-iterations 100" in message


def test_zero_iterations_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
    assert run(monkeypatch, "--num-iterations", "0", "--dtype", "fp32") == 2
    assert "zero steps" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_resume_without_a_name_is_refused(monkeypatch, capsys):
    assert run(monkeypatch, "--resume") == 2
    assert "--run NAME" in capsys.readouterr().err


def test_unknown_data_is_refused_before_anything_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    assert run(monkeypatch, "--data", "buildin", "--dtype", "fp32", "--num-iterations", "5") == 2
    assert "did you mean builtin" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


def test_every_setting_is_documented_and_sorted_into_may_change_or_not():
    source = Path(train.__file__).parents[1] / "recipes" / "settings.py"
    text = source.read_text()
    for name in setting_names(BaseSettings):
        after = text.split(f"    {name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), f"{name} has no help"
    assert frozenset().union(*map(setting_names, get_args(RunSettings))) >= RESUME_MAY_CHANGE
    assert set(HORIZONS) <= RESUME_MAY_CHANGE
    assert {"depth", "seed", "data", "vocab_size", "total_batch_size", "packing", "val"}.isdisjoint(RESUME_MAY_CHANGE)


def test_flag_names():
    assert flag("device_batch_size") == "--device-batch-size"
    assert BaseSettings().data == "builtin"
