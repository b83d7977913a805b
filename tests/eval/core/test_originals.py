"""The table of the published bundle, against the files beside the checkout."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

import yaml

from firstlight.eval.core.originals import HASHES, TASKS


def test_there_are_22_tasks_and_a_hash_for_each_file():
    assert len(TASKS) == 22
    assert {task.dataset_uri for task in TASKS.values()} == set(HASHES)
    assert all(re.fullmatch("sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", known) for known in HASHES.values())


def test_the_table_is_what_the_files_beside_the_checkout_say(shared_data: Path):
    core = shared_data / "core"
    for task in yaml.safe_load((core / "core.yaml").read_text())["icl_tasks"]:
        found = TASKS[task["label"]]
        assert found[:4] == (
            task["dataset_uri"],
            task["icl_task_type"],
            task["num_fewshot"][0],
            task.get("continuation_delimiter", " "),
        )
    with (core / "eval_meta_data.csv").open() as file:
        for row in csv.DictReader(file):
            found = TASKS[row["Eval Task"]]
            assert found.baseline_percent == float(row["Random baseline"])
            assert found.baseline_v2_percent == float(row["Random baseline (DCLM v2)"])
    different = [
        uri
        for uri, known in HASHES.items()
        if "sha256:" + hashlib.sha256((core / "eval_data" / uri).read_bytes()).hexdigest() != known
    ]
    assert sorted(Path(uri).stem for uri in different) == ["coqa", "hellaswag", "squad"]
