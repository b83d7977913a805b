"""Damaged files and full disks: what is bad is named and passed over, what was good stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from resilience import faults
from resilience.harness import (
    TINY,
    assert_same_run,
    checkpoint_dir,
    flip_byte,
    resumed,
    rows,
    run_to_end,
    steps_saved,
)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        pytest.param("model*.safetensors", flip_byte, id="r11-weights"),
        pytest.param("optimizer*.safetensors", flip_byte, id="r11-optimizer"),
        pytest.param("state.json", cut, id="r12-state"),
        pytest.param("manifest.json", Path.unlink, id="r12-manifest"),
    ],
)
def test_r11_r12_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    place, straight, pattern: str, damage: Callable[[Path], None]
):
    run_dir = place.runs / "straight1"
    shutil.copytree(straight(1), run_dir)
    assert steps_saved(run_dir)[-2:] == [15, 20]
    file = sorted(checkpoint_dir(run_dir, 20).glob(pattern))[0]
    damage(file)
    job = run_to_end(place, resumed("straight1"))
    assert file.name in job.output()
    assert "step_00000020" in job.output()
    assert f"resumed from {checkpoint_dir(run_dir, 15)}" in job.output()
    assert_same_run(straight(1), run_dir)


def test_r11_where_every_checkpoint_is_damaged_each_is_named_and_nothing_is_trained_over_them(place, straight):
    run_dir = place.runs / "straight1"
    shutil.copytree(straight(1), run_dir)
    for step in steps_saved(run_dir):
        flip_byte(checkpoint_dir(run_dir, step) / "state.json")
    job = run_to_end(place, resumed("straight1"), codes=4)
    for step in (15, 20):
        assert f"step_{step:08d}" in job.output()
    assert len(rows(run_dir, "train")) == 20, "the record of what was trained must stay"


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_r13_files_that_cannot_grow_cost_one_checkpoint_and_not_the_run(place, straight, world_size):
    job = run_to_end(
        place, replace(TINY, run="full"), world_size, fault=faults.files_stay_small, fault_args=(8, 13, 30_000)
    )
    assert "step 10 could not be saved" in job.output()
    assert "File too large" in job.output()
    assert "training goes on" in job.output()
    assert steps_saved(place.runs / "full")[-2:] == [15, 20]
    assert any("save failed" in row["what"] for row in rows(place.runs / "full", "event"))
    assert_same_run(straight(world_size), place.runs / "full")


@pytest.mark.slow
def test_r13_a_full_disk_says_how_much_is_needed_and_the_last_good_checkpoint_stays(place, straight):
    job = run_to_end(place, replace(TINY, run="full"), fault=faults.no_room_on_disk, fault_args=(8, 99), codes=4)
    assert "step 10 could not be saved" in job.output()
    assert "bytes are needed" in job.output()
    assert steps_saved(place.runs / "full") == [5]
    run_to_end(place, resumed("full"))
    assert_same_run(straight(1), place.runs / "full")
