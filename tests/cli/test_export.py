"""Claims of cli/export.py, through the command line that users type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.cli.main import run


def test_a_run_goes_out_and_comes_back(make_tiny_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_tiny_run()
    out = tmp_path / "out"
    assert run(["export", "hf", "tiny", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["run"], said["path"], said["dtype"]) == ("tiny", str(out), "fp32")
    assert set(said["files"]) == {path.name for path in out.iterdir()}
    assert run(["export", "hf", "tiny", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert run(["import", "hf", str(out), "--run", "again", "--json", "--runs-dir", str(made.path.parent)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == "again"
    assert run(["sample", str(made.path.parent / "again"), "-p", "hello", "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "again"


def test_gguf_is_for_portable(make_tiny_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    make_tiny_run()
    assert run(["export", "gguf", "tiny", str(tmp_path / "a.gguf")]) == 2
    assert "--preset portable" in capsys.readouterr().err
    assert list(tmp_path.glob("*.gguf")) == []
