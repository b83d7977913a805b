"""`firstlight plan`: every number with its reason; refuses what cannot work; touches nothing."""

from __future__ import annotations

import json

from firstlight.cli import main

CPU = ["--device", "cpu", "--dtype", "fp32"]


def test_plan_prints_every_number_with_its_reason(capsys):
    assert main.run(["plan", "--depth", "4", "--minutes", "10", *CPU]) == 0
    shown = capsys.readouterr().out
    for name in ("n_embd", "vocab_size", "total_batch_size", "matrix_lr", "memory", "time"):
        assert name in shown
    assert "64 * depth" in shown


def test_json_is_one_object_with_the_same_numbers(capsys):
    assert main.run(["plan", "--depth", "4", "--num-iterations", "100", "--json", *CPU]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["num_steps"] == 100
    assert plan["model"]["n_embd"] == 256
    assert all(line["reason"] for line in plan["lines"])


def test_world_size_shares_the_rows(capsys):
    seed = ["--depth", "4", "--total-batch-size", "8192", "--max-seq-len", "256", "--num-iterations", "5"]
    assert main.run(["plan", *seed, "--world-size", "8", "--json", *CPU]) == 0
    plan = json.loads(capsys.readouterr().out)
    # 8192 tokens / 256 = 32 rows, over 8 processes 4 each.
    assert plan["device_batch_size"] * plan["num_micro_batches"] == 4


def test_what_does_not_divide_is_refused_with_the_nearest_values(capsys):
    assert main.run(["plan", "--depth", "4", "--total-batch-size", "1000", "--num-iterations", "5", *CPU]) == 2
    assert "768 or 1024" in capsys.readouterr().err


def test_memory_and_disk_are_in_the_plan_without_any_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
    small = ["--depth", "1", "--vocab-size", "512", "--max-seq-len", "64", "--total-batch-size", "1024"]
    assert main.run(["plan", *small, "--num-iterations", "10", "--keep", "3", "--json", *CPU]) == 0
    plan = json.loads(capsys.readouterr().out)
    lines = {line["name"]: line for line in plan["lines"]}
    assert lines["memory"]["value"].endswith("MiB")
    needed = 5 * plan["checkpoint_bytes"] + 10 * 540
    assert lines["disk"]["value"] == f"{needed / 2**20:.1f} MiB"
    assert not (tmp_path / "runs").exists(), "a plan writes nothing"


def test_more_checkpoints_than_fit_are_refused(capsys):
    assert main.run(["plan", "--depth", "4", "--num-iterations", "10", "--keep", "1000000000", *CPU]) == 2
    said = capsys.readouterr().err
    assert "checkpoints need" in said
    assert "use --keep" in said


def test_a_micro_batch_by_trial_is_accepted_and_estimated(capsys):
    assert main.run(["plan", "--depth", "2", "--num-iterations", "10", "--device-batch-size", "auto", *CPU]) == 0
    assert "auto finds the largest that fits by trial" in " ".join(capsys.readouterr().out.split())


def test_unknown_device_is_refused(capsys):
    assert main.run(["plan", "--device", "gpu"]) == 2
    assert "one of auto, cpu, cuda, mps" in capsys.readouterr().err
