"""Scores and their standard errors, by hand and by bootstrap."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from firstlight.eval.core.bundle import Bundle, Task
from firstlight.eval.core.originals import TASKS
from firstlight.eval.core.results import summarize
from firstlight.eval.core.tasks import Decision


def bundle_of(tasks: list[Task], baseline: float = 0.25) -> Bundle:
    values = {task.label: baseline for task in tasks}
    return Bundle(Path("b"), tuple(tasks), {"v1": values, "v2": {**values, "a": 0.5}}, (), ("a note",), "f" * 64)


def a_task(label: str, uri: str = "") -> Task:
    return Task(label, "multiple_choice", 0, " ", uri or f"{label}.jsonl", Path("x"))


def decisions(rights: list[int], margin: float | None = 1.0, *marks: str) -> list[Decision]:
    return [Decision(bool(right), 0, margin, frozenset(marks)) for right in rights]


def test_one_task_by_hand():
    task = a_task("a")
    result = summarize(bundle_of([task]), [task], {"a": decisions([1, 1, 1, 0], 1e-5, "cropped")}, seconds={"a": 2.5})
    [found] = result.tasks
    # 3 of 4: sqrt(0.75 * 0.25 / 4) = 0.216506; (0.75 - 0.25) / 0.75 = 2/3.
    assert (found.accuracy, found.stderr) == (0.75, pytest.approx(0.2165064))
    assert found.centered == pytest.approx(2 / 3)
    assert found.centered_stderr == pytest.approx(0.2165064 / 0.75)
    assert (result.mean, result.mean_stderr) == (found.centered, pytest.approx(found.centered_stderr))
    assert (found.counts["cropped"], found.num_near_ties, found.seconds) == (4, 4, 2.5)
    assert summarize(bundle_of([task]), [task], {"a": decisions([1, 1, 1, 0])}, baselines="v2").mean == 0.5


def test_the_mean_of_independent_tasks_by_hand():
    tasks = [a_task("a"), a_task("b")]
    found = {"a": decisions([1, 0]), "b": decisions([1, 1, 1, 0])}
    result = summarize(bundle_of(tasks), tasks, found)
    # Centred: (1/2 - 1/4) / (3/4) = 1/3 and 2/3. Variances of accuracies: 1/8 and 3/64.
    assert result.mean == pytest.approx(0.5)
    assert result.mean_stderr == pytest.approx(math.sqrt(1 / 8 + 3 / 64) / 0.75 / 2)


def test_tasks_on_the_same_examples_have_the_standard_error_of_a_bootstrap_over_examples():
    generator = np.random.default_rng(0)
    a = generator.random(400) < 0.4
    b = np.where(generator.random(400) < 0.7, a, generator.random(400) < 0.4)
    tasks = [a_task("a", "same.jsonl"), a_task("b", "same.jsonl")]
    result = summarize(bundle_of(tasks), tasks, {"a": decisions(list(a)), "b": decisions(list(b))})
    drawn = generator.integers(0, 400, (4000, 400))
    means = ((a[drawn].mean(1) - 0.25) / 0.75 + (b[drawn].mean(1) - 0.25) / 0.75) / 2
    assert result.mean_stderr == pytest.approx(means.std(), rel=0.06)
    apart = summarize(bundle_of(tasks), [tasks[0], replace(tasks[1], dataset_uri="other")], {
        "a": decisions(list(a)), "b": decisions(list(b))
    })  # fmt: skip
    assert apart.mean_stderr < 0.9 * result.mean_stderr


def test_only_all_22_tasks_are_core_and_reasons_are_given():
    tasks = [a_task(label) for label in TASKS]
    found = {label: decisions([1, 0]) for label in TASKS}
    whole = summarize(bundle_of(tasks), tasks, found)
    assert (whole.is_core, whole.name, whole.not_comparable) == (True, "CORE", ())
    assert whole.to_dict()["core"] == whole.mean
    part = summarize(bundle_of(tasks), tasks[:2], found)
    assert (part.is_core, part.name) == (False, "mean over 2 tasks")
    assert part.to_dict()["core"] is None
    assert "2 tasks ran" in part.not_comparable[0]
    limited = summarize(bundle_of(tasks), tasks, found, max_per_task=2)
    assert limited.name == "CORE (at most 2 examples a task)"
    assert "not comparable" in limited.describe()
    changed = replace(bundle_of(tasks), differences=("x is not the published file",))
    assert summarize(changed, tasks, found).not_comparable == ("x is not the published file",)
    cropped = {**found, "copa": decisions([1, 0], 1.0, "cropped")}
    assert "2 prompts" in summarize(bundle_of(tasks), tasks, cropped).not_comparable[0]
