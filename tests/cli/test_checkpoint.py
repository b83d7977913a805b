"""`checkpoint verify|list|prune`: damaged ones are named with their file, and the last good one and the best stay."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from torn import SHAPES, in_threads, share_of

from firstlight.cli import main
from firstlight.train.checkpoint import list_steps, verify
from firstlight.train.saving import SaveQueue


@pytest.fixture
def run(make_tiny_run):
    tiny = make_tiny_run(steps=(1, 2, 3, 4))
    rows = [{"kind": "eval", "step": step, "val_bpb": bpb} for step, bpb in ((1, 2.5), (2, 2.0), (3, 2.4), (4, 2.3))]
    (tiny.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny


def call(capsys, *words):
    """(exit code, standard output, standard error) of ``firstlight checkpoint ...``."""
    code = main.run(["checkpoint", *map(str, words)])
    return code, *capsys.readouterr()


def damage(run, step, name="model.safetensors"):
    file = run.path / "checkpoints" / f"step_0000000{step}" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def test_a_run_whose_checkpoints_are_whole_passes(run, capsys):
    code, out, err = call(capsys, "verify", "tiny")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"good: {run.path / 'checkpoints' / f'step_0000000{i}'}" for i in (1, 2, 3, 4)]


def test_each_damaged_checkpoint_is_named_with_its_file(run, capsys):
    bad = [damage(run, 2), damage(run, 4, "state.json")]
    code, out, err = call(capsys, "verify", "tiny")
    assert code == 4
    assert out.count("good: ") == 2
    for step, file in zip((2, 4), bad, strict=True):
        assert f"the checkpoint of step {step} is damaged: {file} has changed" in err
    assert "2 of 4 checkpoints are damaged: steps 2, 4" in err


def test_verify_takes_the_folder_of_one_checkpoint_or_of_the_run(run, capsys):
    bad = damage(run, 3)
    assert call(capsys, "verify", run.path / "checkpoints" / "step_00000004")[0] == 0
    code, _, err = call(capsys, "verify", bad.parent)
    assert code == 4
    assert f"the checkpoint {bad.parent} is damaged" in err
    assert call(capsys, "verify", run.path)[0] == 4
    assert call(capsys, "verify", run.path / "checkpoints")[0] == 4


def test_verify_as_json_is_one_object_and_exit_code_4_for_damage(run, capsys):
    bad = damage(run, 3)
    code, out, _ = call(capsys, "verify", "tiny", "--json")
    assert code == 4
    found = {entry["step"]: entry for entry in json.loads(out)["checkpoints"]}
    assert [found[step]["good"] for step in (1, 2, 3, 4)] == [True, True, False, True]
    assert found[3]["problems"] == [f"{bad} has changed since it was saved (its sha256 differs)"]


@pytest.mark.parametrize("command", [("verify",), ("list",), ("prune", "--keep", "1")])
def test_an_unknown_run_is_a_usage_error_with_the_nearest_name(run, capsys, command):
    code, _, err = call(capsys, command[0], "tini", *command[1:])
    assert code == 2
    assert "did you mean tiny?" in err


def test_a_run_without_a_checkpoint_has_nothing_to_verify(run, capsys):
    shutil.rmtree(run.path / "checkpoints")
    code, _, err = call(capsys, "verify", "tiny")
    assert code == 4
    assert "has no checkpoint yet" in err
    code, out, _ = call(capsys, "list", "tiny")
    assert code == 0
    assert "has no checkpoint yet" in out


def test_list_marks_the_newest_whole_one_and_the_best(run, capsys):
    os.truncate(run.path / "checkpoints" / "step_00000004" / "model.safetensors", 10)
    code, out, err = call(capsys, "list", "tiny")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["4", "3", "2", "1"]
    assert [row[-1] for row in rows] == ["damaged", "whole", "whole", "whole"]
    assert [row[-2] for row in rows] == ["-", "newest", "best", "-"]
    assert "step 4 is damaged" in err
    assert "model.safetensors has 10 bytes" in err


def test_list_as_json_has_sizes_and_the_number_of_processes(run, capsys):
    directory = run.path / "checkpoints"

    def one(channel):
        with SaveQueue(directory, keep=9, channel=channel) as saves:
            saves.start(step=5, **share_of(channel.rank, 3, 1.0), shapes=SHAPES, state={})

    in_threads(3, one)
    code, out, _ = call(capsys, "list", "tiny", "--json")
    entries = json.loads(out)["checkpoints"]
    assert code == 0
    assert [(entry["step"], entry["num_processes"]) for entry in entries] == [(5, 3), (4, 1), (3, 1), (2, 1), (1, 1)]
    assert [entry["step"] for entry in entries if entry["newest"]] == [5]
    assert [entry["step"] for entry in entries if entry["best"]] == [2]
    files = list((directory / "step_00000005").iterdir())
    assert entries[0]["num_bytes"] == sum(file.stat().st_size for file in files)


def test_prune_keeps_the_newest_good_ones_and_the_best_and_says_what_it_frees(run, capsys):
    directory = run.path / "checkpoints"
    freed = {step: sum(f.stat().st_size for f in (directory / f"step_0000000{step}").iterdir()) for step in (1, 3)}
    code, out, _ = call(capsys, "prune", "tiny", "--keep", "1", "--dry-run")
    assert code == 0
    assert "would be deleted" in out
    assert list_steps(directory) == [1, 2, 3, 4]
    code, out, _ = call(capsys, "prune", "tiny", "--keep", "1", "--json")
    found = json.loads(out)
    assert code == 0
    assert list_steps(directory) == [2, 4]
    assert {entry["step"]: entry["num_bytes"] for entry in found["deleted"]} == freed
    assert found["freed_bytes"] == sum(freed.values())
    assert "nothing to delete" in call(capsys, "prune", "tiny", "--keep", "1")[1]


def test_prune_never_counts_a_damaged_one(run, capsys):
    bad = damage(run, 4)
    code, _, err = call(capsys, "prune", "tiny", "--keep", "1")
    assert code == 0
    assert f"step 4 is damaged and does not count: {bad}" in err
    assert list_steps(run.path / "checkpoints") == [2, 3, 4]
    assert verify(run.path / "checkpoints" / "step_00000003") == []


@pytest.mark.parametrize("keep", ["0", "-1"])
def test_prune_of_everything_is_refused(run, capsys, keep):
    code, _, err = call(capsys, "prune", "tiny", f"--keep={keep}")
    assert code == 2
    assert "the smallest is 1" in err
    assert list_steps(run.path / "checkpoints") == [1, 2, 3, 4]
