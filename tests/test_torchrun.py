"""Several processes train one model: the same rows in the same order, and the same losses as one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import free_port

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


def test_the_slurm_script_starts_torchrun_on_each_node_with_options_that_exist(tmp_path):
    from torch.distributed.run import get_args_parser

    script = Path(__file__).resolve().parents[1] / "docs" / "slurm" / "train.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    # Stand-ins for Slurm's commands: the nodes' names, and a file with the words that would be started on each node.
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "activate").write_text("")
    (stubs / "scontrol").write_text("#!/bin/bash\nprintf 'node7\\nnode8\\n'\n")
    (stubs / "srun").write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" > {tmp_path}/words\nenv > {tmp_path}/env\n")
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}", "VENV": str(tmp_path), "SHARED": "/big", "SLURM_JOB_ID": "1234567",
        "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    asked = ["--depth", "20", "--data", "my texts"]
    done = subprocess.run(["bash", str(script), *asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text().splitlines()
    launch = words[words.index("torchrun") + 1 :]
    parsed = get_args_parser().parse_args(launch)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts) == ("2", "4", 3)
    assert parsed.rdzv_endpoint.startswith("node7:")
    assert 1024 < int(parsed.rdzv_endpoint.split(":")[1]) < 65536
    assert parsed.module
    assert parsed.training_script == "firstlight"
    assert parsed.training_script_args == ["train", "base", "--name", "job-1234567", "--resume", *asked]
    exported = (tmp_path / "env").read_text().splitlines()
    assert {"FIRSTLIGHT_RUNS=/big/runs", "FIRSTLIGHT_CACHE=/big/cache"} <= set(exported)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that those of several must equal, with the text that they all read in ``texts``."""
    folder = tmp_path_factory.mktemp("alone")
    texts = corpus(folder / "texts")
    line = [sys.executable, "-m", "firstlight", "train", "base", "--data", str(texts), *FLAGS, "--run", "one"]
    done = subprocess.run(line, env=environment_of(folder), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "one"


def environment_of(folder: Path) -> dict[str, str]:
    """Cache and runs of a launch are in this folder."""
    return {
        **os.environ, "FIRSTLIGHT_CACHE": str(folder / "cache"), "FIRSTLIGHT_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def texts_of(alone: Path) -> str:
    return str(alone.parents[1] / "texts")


def losses_of(run_dir: Path) -> list[float]:
    return [row["loss_nats"] for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "train"]


@pytest.mark.slow
def test_two_nodes_on_loopback_train_one_model_as_one_process_does(alone, tmp_path):
    train = ["-m", "firstlight", "train", "base", "--data", texts_of(alone), *FLAGS, "--workers", "1"]
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1",
                "--master-addr=127.0.0.1", f"--master-port={port}", *train, "--name", "nodes",
            ],
            env=environment_of(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    try:
        said = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert "final val bpb" in said[0]
    assert "final val bpb" not in said[1], "only rank 0 talks"
    losses = losses_of(tmp_path / "runs" / "nodes")
    assert len(losses) == 6
    # The sums are added up in another order: nothing more may differ.
    assert losses == pytest.approx(losses_of(alone), abs=1e-5)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_by_torchrun_and_the_run_goes_on_by_itself(tmp_path):
    runs = tmp_path / "runs"
    longer = {"--num-iterations": "60", "--eval-every": "0", "--save-every": "10"}
    flags = [word for pair in ({**dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)), **longer}).items() for word in pair]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    train = ["-m", "firstlight", "train", "base", "--data", str(corpus(tmp_path / "texts")), *flags]
    process = subprocess.Popen(
        [*launch, *train], env=environment_of(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        end_s = time.monotonic() + 200
        while not list(runs.glob("*/checkpoints/step_*")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end_s, "no checkpoint after 200 s"
            time.sleep(0.05)
        [record] = runs.glob("*/run.json")
        assert len(list(runs.glob(".launch-*"))) == 1
        # The record names the process that writes it, which is rank 0.
        os.kill(int(json.loads(record.read_text())["process"].split(":")[1]), signal.SIGKILL)
        said = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert [path.name for path in runs.iterdir()] == [record.parent.name], "one run, and the launch's note is gone"
    steps = [row["step"] for row in read_metrics(record.parent / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(60))
    after = json.loads(record.read_text())
    assert after["status"] == "done"
    assert any(note.startswith("attempt 2: torchrun has started the processes again") for note in after["notes"])


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_model_as_one_process_does(alone, tmp_path):
    train = ["-m", "firstlight", "train", "base", "--data", texts_of(alone), *FLAGS]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *train, "--name", "two"]
    done = subprocess.run(two, env=environment_of(tmp_path), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dirs = {"one": alone, "two": tmp_path / "runs" / "two"}
    rows = {name: read_metrics(folder / "metrics.jsonl") for name, folder in run_dirs.items()}
    losses = {name: [row["loss_nats"] for row in found if row["kind"] == "train"] for name, found in rows.items()}
    assert len(losses["two"]) == 6, "each step is logged once, by rank 0 only"
    # The sums are added up in another order: nothing more may differ.
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)
    scores = {name: [row["val_bpb"] for row in found if row["kind"] == "eval"] for name, found in rows.items()}
    assert scores["two"] == pytest.approx(scores["one"], abs=1e-5)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
