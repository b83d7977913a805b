"""Seeds of one setting are found, and what is not one setting is kept apart and said."""

from __future__ import annotations

import pytest
from comparable import make_run

from firstlight.errors import ConfigError
from firstlight.recipes.compare_groups import NEUTRAL, RESOLVED, group_runs, what_differs
from firstlight.recipes.settings import BaseSettings, setting_names


def groups(runs_dir, *words, group=True):
    found, notes = group_runs(words, runs_dir, group=group)
    return [[run.name for run in one.runs] for one in found], [one.name for one in found], notes


def test_runs_that_differ_in_the_seed_alone_are_one_setting(tmp_path):
    for seed in (1, 2, 3):
        make_run(
            tmp_path, f"base-s{seed}", seed=seed, settings={"threads": seed, "run": f"base-s{seed}", "eval_every": 5}
        )
        make_run(tmp_path, f"slow-s{seed}", seed=seed, matrix_lr=0.005, plan_lr=0.005)
    words = ["base-s1", "slow-s1", "base-s2", "slow-s2", "slow-s3", "base-s3"]
    runs, names, notes = groups(tmp_path, *words)
    assert runs == [["base-s1", "base-s2", "base-s3"], ["slow-s1", "slow-s2", "slow-s3"]]
    assert names == ["base-s{1,2,3}", "slow-s{1,2,3}"]
    assert notes == []
    assert groups(tmp_path, *words, group=False)[0] == [[word] for word in words]


@pytest.mark.parametrize(
    "change",
    [{"commit": "f" * 40}, {"val_hash": "9" * 64}, {"settings": {"fp8": True}}, {"settings": {"packing": "stream"}},
     {"settings": {"something_new": 1}}, {"plan_lr": 0.021}, {"window": 512}, {"steps": 90},
     {"settings": {"spike": "skip"}}, {"settings": {"nonfinite_limit": 9}}],
    ids=str,
)  # fmt: skip
def test_what_can_change_the_result_keeps_runs_apart(tmp_path, change):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, **change)
    assert groups(tmp_path, "a", "b")[0] == [["a"], ["b"]]


def test_a_default_that_was_said_aloud_is_no_difference(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, matrix_lr=0.02, settings={"fp8": False, "spike": "off"})
    assert groups(tmp_path, "a", "b")[0] == [["a", "b"]]


def test_the_same_seed_twice_is_not_two_seeds(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "again", seed=1)
    runs, _, notes = groups(tmp_path, "a", "again")
    assert runs == [["a"], ["again"]]
    assert notes == ["again and a have the same settings and seed 1; they are kept apart"]
    with pytest.raises(ConfigError, match="both have seed 1"):
        group_runs(["a,again"], tmp_path, group=True)


def test_a_written_group_is_taken_as_written_and_its_differences_are_said(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, commit="f" * 40)
    make_run(tmp_path, "c", seed=3)
    runs, names, notes = groups(tmp_path, "a,b", "c")
    assert runs == [["a", "b"], ["c"]]
    assert names == ["a and 1 more", "c"]
    assert notes == ["a and b are in one group as you wrote, and differ in code"]


def test_mistakes_in_names_are_refused(tmp_path):
    make_run(tmp_path, "alpha")
    with pytest.raises(ConfigError, match="named twice"):
        group_runs(["alpha", "alpha"], tmp_path, group=True)
    with pytest.raises(ConfigError, match="did you mean alpha"):
        group_runs(["alpa"], tmp_path, group=True)
    with pytest.raises(ConfigError, match="names no run"):
        group_runs([","], tmp_path, group=True)


def test_what_differs_comes_first_where_it_matters(tmp_path):
    make_run(tmp_path, "a", seed=1, settings={"threads": 1})
    make_run(tmp_path, "b", seed=2, settings={"threads": 2})
    make_run(tmp_path, "c", seed=1, plan_lr=0.005, matrix_lr=0.005)
    found, _ = group_runs(["a", "b", "c"], tmp_path, group=True)
    differs = [(one.name, one.values, one.matters) for one in what_differs(found)]
    assert differs == [
        ("matrix_lr", ("0.02", "0.005"), True),
        ("seed", ("1, 2", "1"), False),
        ("threads", ("1, 2", "-"), False),
    ]


def test_every_name_that_is_left_out_is_a_setting():
    assert setting_names(BaseSettings) >= NEUTRAL
    assert setting_names(BaseSettings) >= RESOLVED
    assert not NEUTRAL & RESOLVED
