"""Published runs: nothing private, the same bytes each time, and a page that is what the code makes of lab/runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparable import make_run

from firstlight.errors import ConfigError, DataError
from firstlight.recipes.results import publish, read_published, render_results, without_private

LAB = Path(__file__).resolve().parents[2] / "lab"


def test_results_md_is_what_is_made_of_the_published_runs():
    expected = render_results(read_published(LAB / "runs"))
    assert (LAB / "RESULTS.md").read_text(encoding="utf-8") == expected, "make it again: firstlight runs publish"


def test_nothing_private_is_published(tmp_path):
    run_dir = make_run(tmp_path / "runs", "a")
    values = json.loads((run_dir / "run.json").read_text())
    process = values["process"]
    (path, results) = publish([run_dir], tmp_path / "lab")
    for text in (path.read_text(), results.read_text()):
        assert process not in text
        assert process.split(":")[0] not in text
        assert "/home" not in text
        assert "ann" not in text
    record = json.loads(path.read_text())["record"]
    assert record["config"]["settings"]["data"] == "wiki"
    assert record["notes"] == ["read from a.txt"]
    assert record["final"] == values["final"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/home/ann b/texts", "texts"), ("C:\\Users\\ann\\wiki.txt", "wiki.txt"), ("~/x/y", "y"), ("owner/name", "owner/name"),
     ("12.3 GFLOP/s and 1/2", "12.3 GFLOP/s and 1/2"), ("see (/tmp/a/b.c): 3", "see (b.c): 3"), ("data=/a/b/c,/d/e", "data=c,e"),
     ("https://example.org/a/b", "https://example.org/a/b"), ("/", "")],
)  # fmt: skip
def test_only_the_last_part_of_an_absolute_path_stays(text, expected):
    assert without_private([text]) == [expected]


def test_publishing_again_gives_the_same_bytes(tmp_path):
    run_dirs = [make_run(tmp_path / "runs", name, bpb=bpb) for name, bpb in (("b", 2.1), ("a", 2.0))]
    first = [path.read_bytes() for path in publish(run_dirs, tmp_path / "lab")]
    again = [path.read_bytes() for path in publish(run_dirs[::-1], tmp_path / "lab")]
    assert first == [again[1], again[0], again[2]]
    assert [path.read_bytes() for path in publish([], tmp_path / "lab")] == [again[2]]


def test_one_table_a_set_of_documents_the_best_first(tmp_path):
    runs = tmp_path / "runs"
    run_dirs = [
        make_run(runs, "worse", bpb=2.1, plan_lr=0.005, matrix_lr=0.005), make_run(runs, "better", bpb=1.9, seed=7),
        make_run(runs, "elsewhere", val_hash="9" * 64),
    ]  # fmt: skip
    text = publish(run_dirs, tmp_path / "lab")[-1].read_text()
    assert text.count("\n## wiki, validation last\n") == 2
    assert text.index("| elsewhere |") < text.index("| better |") < text.index("| worse |")
    row = next(line for line in text.splitlines() if line.startswith("| worse |"))
    assert row.startswith("| worse | 2 | - | matrix_lr 0.005, seed 1 | 2.")
    assert row.endswith(
        "± 0.0200 | 200 | 256 | 100 | 100K | 1.00e11 | 2 min 00 s | a CPU, 2 threads, fp32 | cccccccccc |"
    )


def test_a_curve_is_short_and_on_short_lines(tmp_path):
    (path, _) = publish([make_run(tmp_path / "runs", "a", steps=1000)], tmp_path / "lab")
    curve = json.loads(path.read_text())["curve"]
    assert 30 <= len(curve["loss"]) <= 60
    assert curve["bpb"][0] == [0, 4.0, 50]
    assert len(path.read_text().splitlines()) < 400


def test_what_is_not_done_is_refused_before_anything_is_written(tmp_path):
    run_dirs = [make_run(tmp_path / "runs", "a"), make_run(tmp_path / "runs", "b", status="stopped")]
    with pytest.raises(ConfigError, match="run b is stopped and has no final score"):
        publish(run_dirs, tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"kind": "something"}')
    with pytest.raises(DataError, match=r"x\.json is no published run"):
        read_published(tmp_path)


def test_a_run_does_not_take_the_place_of_another_ones_file(tmp_path):
    first, second = make_run(tmp_path / "here", "a"), make_run(tmp_path / "there", "a", bpb=1.5)
    with pytest.raises(ConfigError, match="two runs are called a"):
        publish([first, second], tmp_path / "lab")
    publish([first], tmp_path / "lab")
    kept = (tmp_path / "lab" / "runs" / "a.json").read_bytes()
    with pytest.raises(ConfigError, match="two runs are called a"):
        publish([second], tmp_path / "lab")
    assert (tmp_path / "lab" / "runs" / "a.json").read_bytes() == kept


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    run_dir = make_run(tmp_path / "runs", "a")
    values = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(values | {"name": "../../outside"}))
    with pytest.raises(ConfigError, match="no name for a file"):
        publish([run_dir], tmp_path / "lab")
    assert not (tmp_path / "outside.json").exists()


def test_a_text_that_is_not_unicode_is_published(tmp_path):
    run_dir = make_run(tmp_path / "runs", "a")
    values = json.loads((run_dir / "run.json").read_text())
    # What a path that is not UTF-8 becomes in a record.
    (run_dir / "run.json").write_text(json.dumps(values | {"notes": ["read b\udcff.txt"]}))
    (path, _) = publish([run_dir], tmp_path / "lab")
    assert json.loads(path.read_text())["record"]["notes"] == ["read b?.txt"]
