"""`runs compare` and `runs publish` from the command line."""

from __future__ import annotations

import json

import pytest
from comparable import make_run

from firstlight.cli import compare, runs
from firstlight.cli.main import run as command_line
from firstlight.errors import ConfigError


@pytest.fixture
def runs_dir(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / "runs", f"base-s{seed}", seed=seed, bpb=2.0)
        make_run(tmp_path / "runs", f"slow-s{seed}", seed=seed + 5, bpb=2.05, plan_lr=0.005)
    return tmp_path / "runs"


NAMES = [f"{name}-s{seed}" for seed in (1, 2, 3) for name in ("base", "slow")]


def test_what_differs_comes_first_then_numbers_then_the_verdict(runs_dir, capsys):
    compare.compare(*NAMES, runs_dir=runs_dir)
    out = capsys.readouterr().out
    places = [out.index(words) for words in ("matrix_lr", "± 0.02", "base-s{1,2,3} is better by 0.0", "--usd-per-hour")]
    assert places == sorted(places)


def test_json_is_one_object_and_the_page_is_written(runs_dir, tmp_path, capsys):
    compare.compare("base-s1,base-s2", "slow-s1", runs_dir=runs_dir, page=tmp_path / "p.html", json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["verdicts"][0]["outcome"] == "a is better"
    assert found["page"] == str(tmp_path / "p.html")
    assert "is better by" in (tmp_path / "p.html").read_text()


def test_mistakes_are_told(runs_dir, tmp_path, capsys):
    with pytest.raises(ConfigError, match="no run is named"):
        compare.compare(runs_dir=runs_dir)
    with pytest.raises(ConfigError, match=r"--page .*cannot be written"):
        compare.compare("base-s1", "slow-s1", runs_dir=runs_dir, page=tmp_path / "nowhere" / "p.html")
    assert command_line(["runs", "compare", "base-s1", "bse-s2", "--runs-dir", str(runs_dir)]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_report_of_several_runs_is_their_comparison(runs_dir, tmp_path, capsys):
    runs.report("base-s1", "slow-s1", runs_dir=runs_dir, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {"page": str(runs_dir / "base-s1" / "compare.html")}
    runs.report("base-s1", "slow-s1", runs_dir=runs_dir, page=tmp_path / "p.html")
    assert (tmp_path / "p.html").exists()
    with pytest.raises(ConfigError, match="--picture"):
        runs.report("base-s1", "slow-s1", runs_dir=runs_dir, picture=tmp_path / "p.svg")
    with pytest.raises(ConfigError, match="--page"):
        runs.report("base-s1", runs_dir=runs_dir, page=tmp_path / "p.html")


def test_publish_writes_records_and_the_page(runs_dir, tmp_path, capsys):
    compare.publish("base-s1", lab=tmp_path / "lab", runs_dir=runs_dir, json=True)
    written = json.loads(capsys.readouterr().out)["written"]
    assert written == [str(tmp_path / "lab" / "runs" / "base-s1.json"), str(tmp_path / "lab" / "RESULTS.md")]
