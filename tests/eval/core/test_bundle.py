"""Reading a bundle: what it holds, what is malformed, and what is not as published."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tiny_core import make_bundle

from firstlight.errors import ConfigError, DataError
from firstlight.eval.core.bundle import _digests, read_bundle, read_examples


def test_settings_baselines_and_examples(tmp_path: Path):
    bundle = read_bundle(make_bundle(tmp_path / "b"))
    assert [(task.label, task.kind, task.num_fewshot, task.delimiter) for task in bundle.tasks] == [
        ("choose", "multiple_choice", 2, "\nAnswer: "),
        ("refer", "schema", 0, " "),
        ("finish", "language_modeling", 1, " "),
    ]
    assert bundle.baselines["v1"] == {"choose": 0.25, "refer": 0.5, "finish": 0.0}
    assert bundle.baselines["v2"]["choose"] == 0.3
    rows = [json.loads(line) for line in bundle.tasks[0].path.read_text().splitlines()]
    first = read_examples(bundle.tasks[0])[0]
    assert (first.text, list(first.options), first.gold) == (rows[0]["query"], rows[0]["choices"], rows[0]["gold"])


def test_any_change_of_any_file_changes_the_hash(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    seen = {read_bundle(path).content_hash}
    for name in ("core.yaml", "eval_meta_data.csv", "eval_data/a/choose.jsonl"):
        (path / name).write_text((path / name).read_text() + "\n" * (name[-1] != "l"))
        if name.endswith("l"):
            (path / name).write_text((path / name).read_text() + ("# a remark\n" if "yaml" in name else "{}\n"))
        seen.add(read_bundle(path).content_hash)
    assert len(seen) == 4


def test_what_is_not_as_published_is_named(tmp_path: Path):
    differences = read_bundle(make_bundle(tmp_path / "b")).differences
    assert "task copa is not in the bundle" in differences
    assert "task choose is not one of the published 22" in differences
    assert "eval_data/a/choose.jsonl is not a file of the published bundle" in differences


def test_the_files_beside_the_checkout_differ_from_the_published_ones_in_three(shared_data: Path):
    assert [line.split("/")[-1] for line in read_bundle(shared_data / "core").differences] == [
        "hellaswag.jsonl is not the published file",
        "coqa.jsonl is not the published file",
        "squad.jsonl is not the published file",
    ]


def test_a_table_without_the_second_baselines_gets_dclms_own_and_says_so(tmp_path: Path, shared_data: Path):
    path = tmp_path / "b"
    path.mkdir()
    for name in ("core.yaml", "eval_data"):
        (path / name).symlink_to(shared_data / "core" / name)
    rows = [line.split(",") for line in (shared_data / "core/eval_meta_data.csv").read_text().splitlines()]
    (path / "eval_meta_data.csv").write_text("".join(",".join(row[:6]) + "\n" for row in rows))
    bundle = read_bundle(path)
    assert bundle.baselines["v2"]["commonsense_qa"] == pytest.approx(0.403)
    assert bundle.baselines["v1"]["commonsense_qa"] == 0.2
    assert "DCLM" in bundle.notes[0]


def test_gits_name_of_a_file_is_gits(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"a text\n" * 1000)
    said = subprocess.run(["git", "hash-object", str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert _digests(tmp_path / "x")["git-sha1"] == said.stdout.strip()


@pytest.mark.parametrize(
    ("uri", "row", "message"),
    [
        ("a/choose.jsonl", "{", "line 13 is not JSON"),
        ("a/choose.jsonl", "[]", "line 13 is not an object"),
        ("a/choose.jsonl", '{"query": "q", "choices": ["a"], "gold": 1}', "line 13: gold 1 is none of the 1 choices"),
        ("a/choose.jsonl", '{"query": "q", "choices": ["a"], "gold": true}', "gold True"),
        ("a/choose.jsonl", '{"query": "q", "choices": ["a", 2], "gold": 0}', "choices must be a list of texts"),
        ("a/choose.jsonl", '{"choices": ["a", "b"], "gold": 0}', "query must be a text, not None"),
        ("a/refer.jsonl", '{"context_options": [], "continuation": "x", "gold": 0}', "context_options must be"),
        ("b/finish.jsonl", '{"context": "x"}', "line 13: continuation must be a text"),
    ],
)
def test_a_malformed_row_is_named_with_file_and_line(tmp_path: Path, uri: str, row: str, message: str):
    path = make_bundle(tmp_path / "b")
    file = path / "eval_data" / uri
    file.write_text(file.read_text() + row + "\n")
    task = next(task for task in read_bundle(path).tasks if task.dataset_uri == uri)
    with pytest.raises(DataError) as caught:
        read_examples(task)
    assert str(file) in caught.value.what
    assert message in caught.value.what


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("core.yaml", "icl_tasks:", "tasks:", "no list icl_tasks"),
        ("core.yaml", "icl_tasks:", "date: 2024-99-99\nicl_tasks:", "not YAML"),
        ("core.yaml", "[2]", "2", "num_fewshot must be a list"),
        ("core.yaml", "schema", "scheme", "icl_task_type 'scheme'"),
        ("core.yaml", "a/refer.jsonl", "../../refer.jsonl", "leaves the bundle"),
        ("core.yaml", "label: refer", "label: choose", "there twice"),
        ("core.yaml", "- label", "- [label", "is not YAML"),
        ("core.yaml", "a/refer.jsonl", "a/nowhere.jsonl", "nowhere.jsonl is missing"),
        ("eval_meta_data.csv", "refer,50", "rafer,50", "no row for refer"),
        ("eval_meta_data.csv", "choose,25", "choose,many", "'many' is not a percentage"),
    ],
)
def test_a_malformed_setting_is_named(tmp_path: Path, name: str, old: str, new: str, message: str):
    path = make_bundle(tmp_path / "b")
    (path / name).write_text((path / name).read_text().replace(old, new))
    with pytest.raises(DataError) as caught:
        read_bundle(path)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_tasks_are_chosen_by_label(tmp_path: Path):
    bundle = read_bundle(make_bundle(tmp_path / "b"))
    assert [task.label for task in bundle.chosen(["finish", "choose"])] == ["choose", "finish"]
    with pytest.raises(ConfigError, match="chose"):
        bundle.chosen(["chose"])
    with pytest.raises(ConfigError, match="names no task"):
        bundle.chosen([])
