"""The record of a launch: notes once, what went wrong at the end hides nothing."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import CheckpointError
from firstlight.recipes import record as records
from firstlight.recipes.keeping import RecordKeeper
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime

ALONE = Runtime(device=torch.device("cpu"))
FACTS = {"status": "running", "config": {"settings": {}}, "device": "cpu", "dtype": "fp32", "world_size": 1}


def keeper(runtime=ALONE):
    return RecordKeeper(runtime, Console(is_main=runtime.is_main))


def test_a_note_is_said_and_kept_once(tmp_path, capsys):
    kept = keeper()
    kept.note("no GPU was found")
    kept.note("no GPU was found")
    kept.open(tmp_path, None, **FACTS)
    assert records.read_run(tmp_path).notes == ("no GPU was found",)
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("no GPU was found") == 1


def test_a_resumed_launch_keeps_the_notes_of_the_one_before_in_order(tmp_path):
    first = keeper()
    first.note("a")
    first.open(tmp_path, None, **FACTS)
    second = keeper()
    second.note("b")
    second.note("a")
    second.open(tmp_path, records.read_run(tmp_path), **FACTS)
    assert records.read_run(tmp_path).notes == ("a", "b")


def test_a_disk_that_refuses_is_told_with_the_file_and_closing_hides_nothing(tmp_path, monkeypatch, capsys):
    kept = keeper()
    kept.open(tmp_path, None, **FACTS)

    def full(run_dir, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_run", full)
    with pytest.raises(CheckpointError, match=r"run\.json could not be written: No space left"):
        kept.save(status="done")
    kept.close("failed", "ended: something else")
    assert "No space left" in capsys.readouterr().err
    assert kept.record.status == "failed"


def test_only_rank_0_writes(tmp_path):
    kept = keeper(Runtime(device=torch.device("cpu"), rank=1, world_size=2))
    kept.open(tmp_path, None, **FACTS)
    kept.close("done", "ended")
    assert list(tmp_path.iterdir()) == []
