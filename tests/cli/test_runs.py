"""`runs list|show|report`: for people and as JSON, with the right answer to a wrong name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from firstlight.cli import runs
from firstlight.errors import ConfigError, DataError
from firstlight.recipes.record import new_record, new_run_dir, write_run


@pytest.fixture
def runs_dir(tmp_path):
    folder = tmp_path / "runs"
    final = {"val_bpb": 1.84321, "val_bpb_stderr": 0.0123, "steps": 1500, "tokens": 12_300_000, "train_loss_nats": 3.25}
    for name, status, made in (("d4-wikipedia", "done", 200.0), ("d2-poems", "stopped", 100.0)):
        facts = {"final": final, "cost": {"elapsed_s": 185.0}} if status == "done" else {}
        record = new_record(
            name,
            status=status,
            config={"depth": 4, "model": {"n_embd": 256}, "tracker": None},
            notes=("dtype fp32: asked for",),
            created_unix_s=made,
            **facts,
        )
        write_run(new_run_dir(folder, name), record)
    return folder


def test_list_shows_the_newest_run_first_with_its_score(runs_dir, capsys):
    runs.list_(runs_dir=runs_dir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "stage", "status", "val", "bpb", "answers", "steps", "tokens", "time", "started"]
    expected = ["d4-wikipedia", "base", "done", "1.8432", "±", "0.0123", "-", "1,500", "12.3M", "3", "min"]
    assert lines[2].split()[:11] == expected
    assert lines[3].split()[:5] == ["d2-poems", "base", "stopped", "-", "-"]


def test_list_shows_what_the_answers_of_later_stages_are_worth(runs_dir, capsys):
    task = {"task": "builtin-chat", "accuracy": 0.625}
    for name, final in (("chat", {"val_bpb": 0.5, "chat": {"tasks": [task]}}), ("rl", {"reward_mean": 0.75})):
        write_run(new_run_dir(runs_dir, name), new_record(name, recipe=name, status="done", final=final))
    runs.list_(runs_dir=runs_dir)
    shown = capsys.readouterr().out
    assert "builtin-chat 62.5 %" in shown
    assert "reward 0.750" in shown


def test_list_as_json_is_one_object_and_nothing_else(runs_dir, capsys):
    (runs_dir / "bad").mkdir()
    (runs_dir / "bad" / "run.json").write_text("{")
    runs.list_(runs_dir=runs_dir, json=True)
    out, err = capsys.readouterr()
    found = json.loads(out)["runs"]
    assert [(run["name"], run["status"]) for run in found] == [
        ("d4-wikipedia", "done"),
        ("d2-poems", "stopped"),
        ("bad", "damaged"),
    ]
    assert found[0]["final"]["val_bpb"] == 1.84321
    assert err == ""


def test_a_damaged_run_is_listed_and_the_reason_is_a_warning(runs_dir, capsys):
    (runs_dir / "bad").mkdir()
    (runs_dir / "bad" / "run.json").write_text("{")
    runs.list_(runs_dir=runs_dir)
    out, err = capsys.readouterr()
    assert "damaged" in out
    assert "run bad is damaged" in err


def test_without_runs_it_says_how_to_start_one(tmp_path, capsys):
    runs.list_(runs_dir=tmp_path / "none")
    assert "firstlight quickstart" in capsys.readouterr().out


def test_show_tells_all_and_what_to_do_next(runs_dir, capsys):
    runs.show("d4-wikipedia", runs_dir=runs_dir)
    out = capsys.readouterr().out
    for expected in (
        "1.8432 ± 0.0123",
        "1,500",
        "model.n_embd  256",
        "dtype fp32: asked for",
        'firstlight sample d4-wikipedia -p "The"',
    ):
        assert expected in out, expected
    assert "tracker" not in out
    runs.show("d2-poems", runs_dir=runs_dir)
    assert "firstlight train base --run d2-poems --resume" in capsys.readouterr().out


def test_show_as_json_is_the_record(runs_dir, capsys):
    runs.show("d4-wikipedia", runs_dir=runs_dir, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["final"]["val_bpb"] == 1.84321
    assert found["config"]["model"] == {"n_embd": 256}
    assert found["status"] == "done"


@pytest.mark.parametrize("command", [runs.show, runs.report])
def test_an_unknown_name_gets_the_nearest_and_exit_code_2(runs_dir, command):
    with pytest.raises(ConfigError, match=r"did you mean d4-wikipedia\?") as caught:
        command("d4-wikpedia", runs_dir=runs_dir)
    assert caught.value.exit_code == 2


def test_a_damaged_run_has_exit_code_3(runs_dir):
    (runs_dir / "d2-poems" / "run.json").write_text("{")
    with pytest.raises(DataError) as caught:
        runs.show("d2-poems", runs_dir=runs_dir)
    assert caught.value.exit_code == 3


def test_report_writes_the_page_and_the_picture(runs_dir, tmp_path, capsys):
    runs.report("d4-wikipedia", runs_dir=runs_dir, picture=tmp_path / "p.svg", json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {"report": str(runs_dir / "d4-wikipedia" / "report.html"), "picture": str(tmp_path / "p.svg")}
    assert (tmp_path / "p.svg").exists()
    assert (runs_dir / "d4-wikipedia" / "report.html").exists()


def test_a_picture_that_cannot_be_written_is_named(runs_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be written"):
        runs.report("d4-wikipedia", runs_dir=runs_dir, picture=tmp_path / "nowhere" / "p.svg")


def test_looking_at_runs_does_not_load_torch(runs_dir):
    script = (
        "import sys; from pathlib import Path; from firstlight.cli import runs; folder = Path(sys.argv[1]);"
        "runs.list_(runs_dir=folder); runs.show('d4-wikipedia', runs_dir=folder); runs.report('d4-wikipedia', runs_dir=folder);"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(runs_dir)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
