"""The whole journey in seconds, by the command line alone: text, tokenizer, training, resuming, score, sample, report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from firstlight.cli import main

SENTENCE = "the old keeper of the light walked down to the sea and counted the boats. "


@pytest.fixture
def journey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As many threads as a user's run has: elsewhere in the suite it is one.
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for shard in range(2):
        lines = [json.dumps({"text": f"{SENTENCE * (1 + i % 4)}Day {i} was calm."}) for i in range(80)]
        (texts / f"{shard}.jsonl").write_text("\n".join(lines))

    def run(*line: str) -> int:
        monkeypatch.setattr(sys, "argv", ["firstlight", *line])
        return main.run(list(line))

    return run, texts, tmp_path


def test_from_text_to_a_model_that_talks(journey, capsys):
    run, texts, folder = journey
    tokenizer = str(folder / "tokenizer.json")
    assert run("tokenizer", "train", "--data", str(texts), "--vocab-size", "300", "--out", tokenizer) == 0
    assert run("data", "info", str(texts), "--tokenizer", tokenizer, "--max-seq-len", "32", "--val", "last") == 0
    train = [
        "train", "base", "--data", str(texts), "--tokenizer", tokenizer, "--depth", "1", "--max-seq-len", "32",
        "--total-batch-size", "512", "--num-iterations", "60", "--val", "last", "--dtype", "fp32", "--compile", "off",
        "--run", "tiny", "--workers", "0",
    ]  # fmt: skip
    assert run(*train) == 0
    assert run(*train) == 2, "a run of that name exists"
    assert run(*train, "--resume") == 0, "and --resume of a finished run has nothing left to train"
    capsys.readouterr()

    assert run("runs", "show", "tiny", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    # The corpus is one sentence, so a model that learns anything knows it soon; at random it would be about 2.5.
    assert record["final"]["val_bpb"] < 0.6
    assert run("eval", "bpb", "tiny", "--json") == 0
    score = json.loads(capsys.readouterr().out)
    assert score["val_bpb"] == pytest.approx(record["final"]["val_bpb"], abs=1e-4)
    assert (
        run("sample", "tiny", "-p", "the old keeper of", "--temperature", "0", "--max-new-tokens", "8", "--json") == 0
    )
    assert "the light" in capsys.readouterr().out
    assert (folder / "runs" / "tiny" / "report.html").stat().st_size > 5000
    assert run("runs", "list") == 0
    assert "tiny" in capsys.readouterr().out
