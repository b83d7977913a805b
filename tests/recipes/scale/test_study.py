"""A study on disk, and outcomes read from its runs' own records."""

from __future__ import annotations

import json

import pytest

from firstlight.errors import ConfigError, DataError
from firstlight.recipes import record as records
from firstlight.recipes.scale import study as studies


def test_a_study_is_read_as_it_was_written(make_study, own_folders) -> None:
    study = make_study()
    folder = studies.begin(own_folders, study)
    assert studies.read_study(folder) == study
    again = studies.with_launch(study, 12.34)
    studies.write_study(folder, again)
    assert studies.read_study(folder).launches_s == (600.0, 300.0, 12.3)


def test_a_study_is_no_run_in_the_list(make_study, own_folders) -> None:
    studies.begin(own_folders, make_study())
    assert records.list_runs(own_folders) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "name": 5}'])
def test_a_damaged_study_is_an_error_with_its_path(make_study, own_folders, text) -> None:
    folder = studies.begin(own_folders, make_study())
    (folder / "scale.json").write_text(text)
    with pytest.raises(DataError, match=r"scale\.json"):
        studies.read_study(folder)


def test_a_name_that_no_study_has_tells_which_there_are(make_study, own_folders) -> None:
    with pytest.raises(ConfigError, match="no scaling study 'other'") as caught:
        studies.find_study("other", own_folders)
    assert "firstlight scale" in caught.value.hint
    studies.begin(own_folders, make_study())
    with pytest.raises(ConfigError) as caught:
        studies.find_study("other", own_folders)
    assert "mine" in caught.value.hint
    assert studies.find_study("mine", own_folders) == own_folders / "mine"


def test_outcomes_follow_the_records(make_study, own_folders) -> None:
    study = make_study()
    first, second, third, fourth = study.cells[:4]
    assert {outcome.status for outcome in studies.outcomes_of(study, own_folders)} == {"waiting"}
    done = records.new_record(
        first.run, status="done", val_hash="v", tokenizer_hash="t", cost={"elapsed_s": 70.0, "train_s": 50.0},
        final={"val_bpb": 2.1, "val_bpb_stderr": 0.01, "tokens": 123},
    )  # fmt: skip
    records.write_run(records.new_run_dir(own_folders, first.run), done)
    failed = records.new_record(second.run, status="failed", notes=("a choice", "ended: no space"))
    records.write_run(records.new_run_dir(own_folders, second.run), failed)
    (records.new_run_dir(own_folders, third.run) / "run.json").write_text("{")
    records.new_run_dir(own_folders, fourth.run)
    found = studies.outcomes_of(study, own_folders)
    assert (found[0].is_done, found[0].bpb, found[0].num_tokens, found[0].train_s) == (True, 2.1, 123, 50.0)
    assert (found[1].status, found[1].problem) == ("failed", "no space")
    assert found[2].status == "damaged"
    assert found[3].status == "waiting", "a folder without a record has not begun"


def test_names_that_are_taken_are_refused(make_study, own_folders) -> None:
    study = make_study()
    records.write_run(records.new_run_dir(own_folders, study.cells[2].run), records.new_record(study.cells[2].run))
    with pytest.raises(ConfigError, match=study.cells[2].run):
        studies.check_free(study, own_folders)
    studies.begin(own_folders, study)
    with pytest.raises(ConfigError, match="there is a study of that name") as caught:
        studies.check_free(study, own_folders)
    assert "--resume" in caught.value.hint


def test_numbers_that_are_none_are_null(tmp_path) -> None:
    path = studies.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5]}
