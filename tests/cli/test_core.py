"""Claims of cli/core.py, through the command line that users type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_core import make_bundle

from firstlight.cli.main import run

CPU = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]


def test_a_run_is_scored_and_its_decisions_are_kept(make_tiny_run, capsys, tmp_path: Path) -> None:
    made = make_tiny_run()
    bundle = str(make_bundle(tmp_path / "b"))
    assert run(["eval", "core", "tiny", "--bundle", bundle, *CPU, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["step"], found["num_tasks"], found["core"]) == ("tiny", 3, 3, None)
    assert [task["num_examples"] for task in found["tasks"]] == [12, 12, 12]
    assert Path(found["result"]).parent == made.path / "core"
    assert run(["eval", "core", "tiny", "--bundle", bundle, *CPU]) == 0
    captured = capsys.readouterr()
    assert "36 decisions were there already" in captured.out
    assert "mean over 3 tasks" in captured.out
    assert "not comparable with published scores" in captured.out
    assert "lost their beginning" in captured.out


def test_longer_positions_crop_less(make_tiny_run, capsys, tmp_path: Path) -> None:
    make_tiny_run()
    bundle = str(make_bundle(tmp_path / "b"))
    cropped = []
    for how in ("crop", "extend"):
        assert run(["eval", "core", "tiny", "--bundle", bundle, *CPU, "--json", "--long-prompts", how]) == 0
        found = json.loads(capsys.readouterr().out)
        cropped.append(sum(task["num_cropped"] for task in found["tasks"]))
        assert found["max_seq_len"] == (32 if how == "crop" else 320)
    assert cropped[0] > 0
    assert cropped[1] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "needs a run or --hf"),
        (["tiny", "--hf", "x"], 2, "not both"),
        (["tiny", "--tasks", "chose", "--bundle", "BUNDLE"], 2, "chose"),
        (["tiny", "--max-per-task", "0", "--baselines", "v3"], 2, "2 things are wrong"),
        (["tiny", "--bundle", "nowhere"], 2, "--bundle nowhere"),
        (["tiny", "--bundle", "BUNDLE", "--checkpoint", "9"], 4, "kept are steps 3"),
        (["unknown", "--bundle", "BUNDLE"], 2, "unknown"),
        (["--hf", "x", "--long-prompts", "extend"], 2, "for runs"),
    ],
)
def test_mistakes_have_their_message_and_exit_code(
    make_tiny_run, capsys, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    make_tiny_run()
    bundle = str(make_bundle(tmp_path / "b"))
    assert run(["eval", "core", *[bundle if a == "BUNDLE" else a for a in arguments], "--device", "cpu"]) == code
    assert message in capsys.readouterr().err


def test_a_hugging_face_model_is_scored_without_a_run(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="models of Hugging Face need transformers")
    from tiny_hf import save_tiny

    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    folder = save_tiny(tmp_path / "m")
    bundle = str(make_bundle(tmp_path / "b"))
    arguments = ["eval", "core", "--hf", str(folder), "--bundle", bundle, "--device", "cpu", "--threads", "1", "--json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["step"], found["dtype"]) == (str(folder), None, "fp32")
    assert [task["num_examples"] for task in found["tasks"]] == [12, 12, 12]
    assert Path(found["result"]).parent == tmp_path / "cache/core"
    assert run(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["num_resumed"] == 36
    assert again["tasks"] == found["tasks"]
