"""Two processes train one model: the same rows in the same order, and the same losses as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.runtime.metrics import read_metrics

FLAGS = [
    "--depth", "1", "--vocab-size", "300", "--max-seq-len", "32", "--total-batch-size", "256", "--num-iterations", "6", "--val",
    "last", "--dtype", "fp32", "--compile", "off", "--threads", "1", "--eval-every", "3", "--sample-every", "0", "--save-every", "3",
]  # fmt: skip


def corpus(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(2):
        texts = [
            f"document {i} of shard {shard}: the {i % 7} green birds saw the {i % 5} old stones. " * 4
            for i in range(60)
        ]
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_model_as_one_process_does(tmp_path):
    environment = {
        **os.environ, "FIRSTLIGHT_CACHE": str(tmp_path / "cache"), "FIRSTLIGHT_RUNS": str(tmp_path / "runs"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    train = ["-m", "firstlight", "train", "base", "--data", str(corpus(tmp_path / "texts")), *FLAGS]
    one = [sys.executable, *train, "--run", "one"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *train, "--name", "two"]
    for line in (one, two):
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = {name: read_metrics(tmp_path / "runs" / name / "metrics.jsonl") for name in ("one", "two")}
    losses = {name: [row["loss_nats"] for row in found if row["kind"] == "train"] for name, found in rows.items()}
    assert len(losses["two"]) == 6, "each step is logged once, by rank 0 only"
    # The sums are added up in another order: nothing more may differ.
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)
    scores = {name: [row["val_bpb"] for row in found if row["kind"] == "eval"] for name, found in rows.items()}
    assert scores["two"] == pytest.approx(scores["one"], abs=1e-5)
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name not in ("one", "two")] == []
