"""run.json and the folder of runs: whole or not there, strict JSON, damaged ones named, names never taken twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from firstlight.errors import ConfigError, DataError
from firstlight.recipes.record import (
    find_run,
    flatten,
    list_runs,
    new_record,
    new_run_dir,
    read_run,
    updated,
    write_run,
)


def make_run(runs_dir, name, **facts):
    run_dir = new_run_dir(runs_dir, name)
    write_run(run_dir, new_record(name, **facts))
    return run_dir


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = new_record(
        "d4",
        config={"depth": 4, "model": {"n_embd": 256}},
        parents=("base-1",),
        notes=("dtype fp32: no bf16 here",),
        final={"val_bpb": 1.5, "val_bpb_stderr": 0.01},
        data_hash="ab" * 32,
    )
    write_run(tmp_path, record)
    assert read_run(tmp_path) == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_a_record_says_by_which_code_and_versions(tmp_path):
    record = new_record("d4")
    assert record.versions["python"] == sys.version.split()[0]
    assert record.status == "running"
    assert record.created_unix_s == record.updated_unix_s > 1.6e9
    later = updated(record, status="done", final={"steps": 3})
    assert (later.status, later.final, later.created_unix_s) == ("done", {"steps": 3}, record.created_unix_s)
    assert later.updated_unix_s >= record.updated_unix_s


def test_run_json_is_strict_even_when_a_score_is_infinite(tmp_path):
    path = write_run(tmp_path, new_record("d4", final={"val_bpb": float("inf")}))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["final"]["val_bpb"] is None


def test_a_path_that_is_not_utf8_survives(tmp_path):
    path = os.fsdecode(b"/texts/caf\xe9")
    write_run(tmp_path, new_record("d4", config={"data": path}))
    assert read_run(tmp_path).config["data"] == path


def test_an_interrupted_write_leaves_the_old_record(tmp_path, monkeypatch):
    first = new_record("d4")
    write_run(tmp_path, first)
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_run(tmp_path, updated(first, status="done"))
    assert read_run(tmp_path) == first


@pytest.mark.parametrize(
    "content",
    ["", '{"name": "d', "[]", '{"schema": 1}', '{"schema": 1, "name": "a", "status": "flying"}', '{"name": "a", "schema": "x"}',
     '{"schema": 1, "name": "a", "config": 3}'],
)  # fmt: skip
def test_a_damaged_record_is_named_and_does_not_hide_the_others(tmp_path, content):
    make_run(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"bad.run\.json"):
        read_run(tmp_path / "bad")
    good, bad = list_runs(tmp_path)
    assert (good.name, good.problem) == ("good", None)
    assert (bad.name, bad.record) == ("bad", None)
    assert "run.json" in bad.problem


def test_a_record_of_a_newer_firstlight_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 99, "name": "a"}')
    with pytest.raises(DataError, match="newer firstlight"):
        read_run(tmp_path)


def test_runs_are_listed_newest_first_and_other_folders_are_not_runs(tmp_path):
    for name, made in (("b", 100.0), ("a", 300.0), ("c", 200.0)):
        make_run(tmp_path, name, created_unix_s=made)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x")
    assert [run.name for run in list_runs(tmp_path)] == ["a", "c", "b"]
    assert list_runs(tmp_path / "nowhere") == []


def test_a_run_is_found_by_name_of_any_form_and_by_path(tmp_path):
    for name in ("exp1", "d4-2", "2024.final_x"):
        run_dir = make_run(tmp_path, name)
        assert find_run(name, tmp_path) == run_dir
        assert find_run(str(run_dir), tmp_path / "elsewhere") == run_dir


def test_an_unknown_run_gets_the_nearest_names(tmp_path):
    with pytest.raises(ConfigError, match="no runs there yet"):
        find_run("d4", tmp_path)
    make_run(tmp_path, "d4-wikipedia")
    make_run(tmp_path, "poems")
    with pytest.raises(ConfigError, match=r"did you mean d4-wikipedia\?"):
        find_run("d4-wikpedia", tmp_path)
    with pytest.raises(ConfigError, match=r"there are: .*poems"):
        find_run("zzz", tmp_path)


def test_a_name_that_is_taken_is_refused_with_the_two_ways_out(tmp_path):
    make_run(tmp_path, "d4")
    with pytest.raises(ConfigError, match=r"--run d4(.|\n)*--resume(.|\n)*another name"):
        new_run_dir(tmp_path, "d4")
    (tmp_path / "empty").mkdir()
    assert new_run_dir(tmp_path, "empty") == tmp_path / "empty"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a b", "x" * 101, "caf\u00e9"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        new_run_dir(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_free_names_count_up_by_number_not_by_text(tmp_path):
    assert new_run_dir(tmp_path / "runs", None, prefix="d4").name == "d4-1"
    for other in ("d4-9", "d4-10", "d4-10_backup", "d40-77"):
        (tmp_path / "runs" / other).mkdir()
    assert new_run_dir(tmp_path / "runs", None, prefix="d4").name == "d4-11"


def test_processes_that_ask_together_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run_dir(tmp_path, None, prefix="d4").name, range(24)))
    assert len(set(made)) == 24


def test_a_place_where_no_folder_can_be_made_is_an_error_of_configuration(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="FIRSTLIGHT_RUNS"):
        new_run_dir(tmp_path / "file", "d4")
    with pytest.raises(ConfigError, match="FIRSTLIGHT_RUNS"):
        new_run_dir(tmp_path / "file" / "below", None)


def test_a_killed_run_is_not_shown_as_running(tmp_path):
    record = new_record("d4")
    assert record.shown_status() == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    machine = record.process.split(":")[0]
    assert updated(record, process=f"{machine}:{gone.pid}").shown_status() == "killed"
    assert updated(record, process=f"another0:{gone.pid}").shown_status() == "running"
    assert updated(record, process=f"{machine}:{gone.pid}", status="done").shown_status() == "done"
    assert updated(record, process="nonsense").shown_status() == "running"


def test_settings_flatten_to_dotted_names():
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
