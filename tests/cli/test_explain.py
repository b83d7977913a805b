"""Claims of cli/explain.py, through the command line that users type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.cli.main import run

PLAN = {
    "device_batch_size": 2, "num_micro_batches": 1, "total_batch_size": 64, "seq_len": 32, "num_steps": 10,
    "estimated_steps": 10, "embedding_lr": 0.3, "unembedding_lr": 0.005, "matrix_lr": 0.02, "weight_decay": 0.0,
    "grad_clip": 1.0, "warmup_frac": 0.1, "warmdown_frac": 0.5, "final_lr_frac": 0.05, "momentum_start": 0.85,
    "momentum_end": 0.95, "horizon": {"kind": "steps", "value": 10},
}  # fmt: skip
FAST = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]


@pytest.fixture
def tiny(make_tiny_run) -> Path:
    made = make_tiny_run(steps=(3, 5))
    path = made.path / "run.json"
    values = json.loads(path.read_text())
    values["config"]["plan"] = PLAN
    path.write_text(json.dumps(values))
    return made.path


def test_a_run_is_told_and_its_page_lies_in_its_folder(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "tiny", "--text", "hello there", *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny: preset classic, depth 1")
    assert "step 5" in out
    assert out.splitlines()[-1] == f"page: {tiny / 'explain.html'}"
    assert "tiny, explained" in (tiny / "explain.html").read_text(encoding="utf-8")


def test_json_is_one_object_and_writes_no_page(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "tiny", "--checkpoint", "3", "--text", "-x <b>", "--json", *FAST]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["title"], facts["step"], facts["text"], facts["page"]) == ("tiny", 3, "-x <b>", None)
    assert facts["walk"]["score"]["num_bytes"] == 6
    assert not (tiny / "explain.html").exists()


def test_a_depth_needs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "one.html"
    assert (
        run(["explain", "--depth", "1", "--preset", "portable", "--page", str(page), "--max-tokens", "9", *FAST]) == 0
    )
    out = capsys.readouterr().out
    assert "Untrained" in out
    assert "swiglu" in out
    assert page.exists()
    assert run(["explain", "--depth", "24", *FAST]) == 0
    assert "add --page FILE.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to explain was named"),
        (["tiny", "--depth", "3"], 2, "are both given"),
        (["tiny", "--preset", "modern"], 2, "--preset modern goes with --depth"),
        (["--depth", "1", "--checkpoint", "best"], 2, "--checkpoint best goes with a run"),
        (["tiny", "--text", ""], 2, "--text is empty"),
        (["tiny", "--max-tokens", "1"], 2, "--max-tokens 1 is out of range"),
        (["tiny", "--page", "/nowhere/x.html"], 2, "there is no folder /nowhere"),
        (["tinny"], 2, "did you mean tiny?"),
        (["tiny", "--checkpoint", "7"], 4, "keeps no checkpoint of step 7"),
        (["--depth", "0"], 2, "--depth 0 is too small"),
        (["--max-tokens", "0", "--text", ""], 2, "3 things are wrong"),
    ],
)
def test_mistakes_are_named_without_a_traceback(tiny, capsys, arguments: list[str], code: int, said: str) -> None:
    assert run(["explain", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
