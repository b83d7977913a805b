"""Which checkpoints stay, and that deleting the others never costs the last good one (R22)."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest
from torn import Cut, Operations, names, number_of_operations, save, value_in

from firstlight.train import manifest as manifests
from firstlight.train.checkpoint import find_latest_good, list_steps
from firstlight.train.retention import find_surplus, retain


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    assert retain(tmp_path, keep=2, best_step=20) == [30, 10]
    assert list_steps(tmp_path) == [20, 40, 50]
    assert retain(tmp_path, keep=2, best_step=20) == []
    assert names(tmp_path) == ["step_00000020", "step_00000040", "step_00000050"]


@pytest.mark.parametrize("keep", [0, 1])
def test_the_last_good_one_is_never_deleted(tmp_path, keep):
    save(tmp_path, 1)
    for step in (2, 3):
        os.truncate(save(tmp_path, step) / "model.safetensors", 10)
    assert retain(tmp_path, keep=keep) == []
    assert find_latest_good(tmp_path) == tmp_path / "step_00000001"


def test_damaged_ones_do_not_count_as_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    for step in (2, 4):
        os.truncate(tmp_path / f"step_0000000{step}" / "model.safetensors", 10)
    assert retain(tmp_path, keep=2) == [2, 1]
    assert list_steps(tmp_path) == [3, 4, 5]


def test_known_good_ones_are_not_read_again(tmp_path, monkeypatch):
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    monkeypatch.setattr(manifests, "verify", lambda path: pytest.fail(f"{path} was read"))
    assert retain(tmp_path, keep=2, known_good=set(paths)) == [1]


def test_a_failed_deletion_is_reported_and_does_not_stop_the_others(tmp_path, monkeypatch):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    original = os.rename

    def stubborn(source, target):
        if Path(source).name == "step_00000002":
            raise OSError(errno.EBUSY, "Device or resource busy")
        original(source, target)

    said = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stubborn)
        assert retain(tmp_path, keep=1, report=said.append) == [3, 1]
    assert len(said) == 1
    assert "step_00000002 could not be deleted (Device or resource busy)" in said[0]
    assert list_steps(tmp_path) == [2, 4]
    assert retain(tmp_path, keep=1) == [2]


def test_a_deletion_cut_off_half_way_is_no_checkpoint_and_is_cleared_later(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: os.unlink(path / "model.safetensors") or _raise(Cut))
        with pytest.raises(Cut):
            retain(tmp_path, keep=1)
    assert [name for name in names(tmp_path) if name.startswith(".trash-")]
    said = []
    assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000002"
    assert said == []
    save(tmp_path, 3)
    assert names(tmp_path) == ["step_00000002", "step_00000003"]


def _raise(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_kill_between_saving_and_deleting_leaves_a_good_one(tmp_path, monkeypatch, keep):
    def one_round(directory: Path, step: int) -> None:
        save(directory, step)
        retain(directory, keep=keep)

    for step in range(1, 5):
        one_round(tmp_path / "before", step)
    shutil.copytree(tmp_path / "before", tmp_path / "counting")
    total = number_of_operations(tmp_path, monkeypatch, lambda directory: one_round(directory, 5))
    for k in range(total):
        directory = shutil.copytree(tmp_path / "before", tmp_path / f"cut_{k}")
        with monkeypatch.context() as patch:
            Operations(patch, cut_at=k)
            with contextlib.suppress(Cut):
                one_round(directory, 5)
        said = []
        found = find_latest_good(directory, said.append)
        assert found is not None
        assert value_in(found) in (4, 5)
        assert said == []


def test_surplus_is_only_named_and_damaged_ones_are_told_of(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    bad = tmp_path / "step_00000004" / "state.json"
    os.truncate(bad, 0)
    said = []
    surplus = find_surplus(tmp_path, keep=1, best_step=1, report=said.append)
    assert surplus == [(2, tmp_path / "step_00000002")]
    assert list_steps(tmp_path) == [1, 2, 3, 4]
    assert len(said) == 1
    assert "step 4 is damaged" in said[0]
    assert str(bad) in said[0]
