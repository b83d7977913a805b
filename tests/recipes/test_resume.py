"""What a resumed run keeps, may change, and refuses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from ranks import run_ranks

from firstlight.errors import ConfigError, DataError
from firstlight.recipes.record import new_record, new_run_dir, write_run
from firstlight.recipes.resume import (
    check_all_see,
    check_begins,
    check_identity,
    keep_planned,
    merge_settings,
    previous_record,
)
from firstlight.recipes.settings import BaseSettings

SAVED = BaseSettings(run="mine", depth=3, num_iterations=100, data="texts", seed=9, save_every=10)


def previous(**plan):
    config = {"settings": asdict(SAVED), "plan": plan, "model": {"vocab_size": 777}}
    return new_record("mine", config=config, data_hash="d" * 64, tokenizer_hash="t" * 64)


def test_settings_that_are_not_written_keep_their_saved_values():
    merged, changes = merge_settings(
        BaseSettings(run="mine", resume=True), given=frozenset({"run", "resume"}), previous=previous()
    )
    assert (merged.depth, merged.num_iterations, merged.data, merged.seed, merged.save_every) == (
        3,
        100,
        "texts",
        9,
        10,
    )
    assert merged.resume
    assert changes == []


def test_allowed_changes_are_made_and_said():
    given = frozenset({"run", "resume", "save_every", "num_iterations"})
    wanted = BaseSettings(run="mine", resume=True, save_every=5, num_iterations=200)
    merged, changes = merge_settings(wanted, given=given, previous=previous())
    assert (merged.save_every, merged.num_iterations) == (5, 200)
    assert any("--save-every 5 (was 10)" in change for change in changes)


def test_new_horizon_replaces_the_old_one_whatever_its_unit():
    merged, _ = merge_settings(
        BaseSettings(run="mine", resume=True, minutes=3), given=frozenset({"resume", "minutes"}), previous=previous()
    )
    assert (merged.minutes, merged.num_iterations) == (3, None)


def test_what_makes_it_another_run_is_refused_by_name_all_at_once():
    wanted = BaseSettings(run="mine", resume=True, depth=4, seed=1, data="other")
    with pytest.raises(ConfigError) as caught:
        merge_settings(wanted, given=frozenset({"resume", "depth", "seed", "data"}), previous=previous())
    message = str(caught.value)
    for part in ("--depth 4", "started with 3", "--seed 1", "--data other", "--save-every"):
        assert part in message


def test_writing_the_same_value_again_is_no_change():
    merged, changes = merge_settings(
        BaseSettings(run="mine", resume=True, depth=3), given=frozenset({"resume", "depth"}), previous=previous()
    )
    assert merged.depth == 3
    assert changes == []


def test_numbers_that_the_first_plan_chose_stay():
    record = previous(total_batch_size=2048, matrix_lr=0.03, device_batch_size=4, save_every=77)
    kept = keep_planned(SAVED, record, world_size=1)
    assert (kept.total_batch_size, kept.matrix_lr, kept.device_batch_size, kept.vocab_size) == (2048, 0.03, 4, 777)
    assert kept.save_every == 10, "what the user wrote goes before the plan's"
    other_machine = keep_planned(SAVED, record, world_size=2)
    assert other_machine.total_batch_size == 2048
    assert other_machine.device_batch_size is None


def test_data_and_tokenizer_are_told_apart_by_content():
    same = {"data": "texts", "data_hash": "d" * 64, "tokenizer_hash": "t" * 64, "kept_in": Path("runs/mine")}
    check_identity(previous(), **same)
    with pytest.raises(DataError, match="the data texts has changed"):
        check_identity(previous(), **(same | {"data_hash": "e" * 64}))
    with pytest.raises(DataError, match="the tokenizer has changed"):
        check_identity(previous(), **(same | {"tokenizer_hash": "e" * 64}))


def test_resume_needs_a_name_and_a_run_that_has_not_begun_is_none(tmp_path):
    with pytest.raises(ConfigError, match="needs the name"):
        previous_record(BaseSettings(resume=True), tmp_path, recipe="base")
    assert previous_record(BaseSettings(run="never", resume=True), tmp_path, recipe="base") is None


def seen_by_rank_0_only(runtime):
    record = new_record("mine") if runtime.rank == 0 else None
    try:
        check_all_see(record, BaseSettings(run="mine"), Path("runs"), runtime.control)
    except ConfigError as error:
        return str(error)
    return "went on"


def test_a_run_that_one_process_does_not_see_is_refused_on_all():
    said = run_ranks(seen_by_rank_0_only, 2)
    assert len(set(said)) == 1
    assert "is not seen by rank 1" in said[0]


def test_a_name_that_no_run_has_is_refused_where_nothing_else_is_said(tmp_path):
    write_run(new_run_dir(tmp_path, "mine"), new_record("mine"))
    asked = BaseSettings(run="mien", resume=True)
    with pytest.raises(ConfigError, match="there is no run mien; did you mean mine"):
        check_begins(None, asked, tmp_path, given=frozenset({"run", "resume"}))
    # A job script says all of it each time, and means it.
    check_begins(None, asked, tmp_path, given=frozenset({"run", "resume", "minutes"}))
    check_begins(new_record("mien"), asked, tmp_path, given=frozenset({"run", "resume"}))


def test_an_imported_model_is_not_resumed(tmp_path: Path) -> None:
    run_dir = new_run_dir(tmp_path, "mine")
    write_run(run_dir, new_record("mine", recipe="import", status="done", config={"model": {}}))
    with pytest.raises(ConfigError, match="no optimizer state"):
        previous_record(BaseSettings(run="mine", resume=True), tmp_path, recipe="base")
