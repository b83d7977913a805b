"""A tiny corpus and a run folder of its own for every test of a recipe."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from words import WORDS


def tiny_texts(num: int, *, seed: int) -> list[str]:
    """Sentences of common words, some documents long and some short."""
    draw = random.Random(seed)
    return [
        ". ".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(draw.randint(1, 12))) + "."
        for _ in range(num)
    ]


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Path:
    """A folder with two .jsonl shards of 120 documents each."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(2):
        lines = [json.dumps({"text": text}) for text in tiny_texts(120, seed=shard)]
        (folder / f"part_{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and cache of a test are its own. Returns the folder of the runs."""
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "runs"
