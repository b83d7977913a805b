"""SIGKILL at any moment, of all processes or of one: what is on the disk is enough to end where the unkilled run ends."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace

import pytest
from resilience.harness import (
    TINY,
    assert_same_run,
    is_saving,
    launch,
    num_steps_done,
    resumed,
    run_to_end,
    steps_saved,
    wait_for_step,
    wait_until,
)

NUM_KILLS = 6


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_r8_killed_again_and_again_half_the_times_in_a_save_ends_as_the_unkilled_run(place, straight, world_size):
    run_dir = place.runs / "killed"
    draw = random.Random(world_size)
    in_save = 0
    settings = replace(TINY, run="killed", save_every=1)
    for number in range(NUM_KILLS):
        before = (steps_saved(run_dir) or [0])[-1]
        job = launch(place, settings, world_size)
        if number % 2:
            wait_for_step(run_dir, min(before + draw.randint(1, 3), 18), job)
            wait_until(lambda job=job: is_saving(run_dir, job), "save", job=job)
            in_save += 1
        else:
            wait_for_step(run_dir, min(before + draw.randint(0, 2), 18), job)
            time.sleep(draw.random() / 20)
        job.kill()
        assert job.wait() == [-9] * world_size, job.everything()
        settings = resumed("killed")
    assert in_save == NUM_KILLS // 2
    run_to_end(place, settings, world_size)
    assert_same_run(straight(world_size), run_dir)
    assert [p.name for p in (run_dir / "checkpoints").iterdir() if not p.name.startswith("step_")] == []


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_r9_a_killed_rank_ends_the_other_within_seconds_and_a_restart_goes_on(place, straight, which):
    run_dir = place.runs / "lonely"
    job = launch(place, replace(TINY, run="lonely"), 2)
    wait_for_step(run_dir, 7, job)
    job.kill(which)
    killed_s = time.monotonic()
    codes = job.wait(timeout_s=60)
    took_s = time.monotonic() - killed_s
    assert codes[which] == -9
    assert codes[1 - which] > 0, job.everything()
    assert took_s < 20
    said = job.output(1 - which)
    assert "another process" in said or "other process" in said or f"rank {which}" in said, said
    assert "--resume" in said, said
    run_to_end(place, resumed("lonely"), 2)
    assert_same_run(straight(2), run_dir)


@pytest.mark.slow
def test_r29_a_kill_while_text_is_made_into_tokens_leaves_a_cache_that_the_next_launch_completes(
    home, place, straight, tmp_path
):
    fresh = replace(place, cache=tmp_path / "cache")
    for moment in ("tokenizers", "tokens"):
        job = launch(fresh, replace(TINY, run=f"early-{moment}"))
        wait_until(lambda: fresh.cache.is_dir() and any(fresh.cache.rglob("*")), "file in the cache", job=job)
        time.sleep(0.02)
        job.kill()
        assert job.wait() == [-9], "it must be killed before its end to prove something"
    run_to_end(fresh, replace(TINY, run="late"))
    assert num_steps_done(fresh.runs / "late") == 20
    assert_same_run(straight(1), fresh.runs / "late")
    shutil.rmtree(fresh.cache)
