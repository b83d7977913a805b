"""Curves over other axes, and what it takes to get as far: by hand."""

from __future__ import annotations

import math

import pytest
from comparable import make_run

from firstlight.eval.document_scores import find_document_scores, read_document_scores
from firstlight.recipes.compare_curves import first_reach, interpolated, mean_curve, needed, over, run_curves
from firstlight.recipes.compare_groups import group_runs
from firstlight.recipes.compare_scores import final_scores
from firstlight.runtime.metrics import read_metrics


def curves_of(runs_dir, *words, usd_per_hour=None):
    groups, _ = group_runs(words, runs_dir, group=True)
    scores = final_scores(groups, val_hash=None)
    found = {}
    for run in (run for group in groups for run in group.runs):
        rows = read_metrics(run.path / "metrics.jsonl", damaged=[])
        found[str(run.path)] = run_curves(run, rows, scores[str(run.path)], usd_per_hour=usd_per_hour)
    return groups, found


def test_interpolation_and_means():
    points = [(0.0, 0.0), (10.0, 100.0), (20.0, 0.0)]
    assert [interpolated(points, x) for x in (-5, 0, 2.5, 10, 15, 99)] == [0, 0, 25, 100, 50, 0]
    assert over([(5.0, 3.0)], points) == [(50.0, 3.0)]
    # They meet from 5 to 10; the second is at 2 there.
    assert mean_curve([[(0.0, 1.0), (5.0, 1.0), (10.0, 2.0), (20.0, 9.0)], [(5.0, 2.0), (10.0, 2.0)]]) == [
        (5.0, 1.5), (10.0, 2.0),
    ]  # fmt: skip
    assert mean_curve([[(0.0, 1.0)], [(5.0, 2.0)]]) == []


def test_first_reach():
    assert first_reach([(1.0, 4.0), (100.0, 2.0)], 3.0) == pytest.approx(10.0)
    assert first_reach([(0.0, 4.0), (100.0, 2.0)], 3.0) == pytest.approx(50.0)
    assert first_reach([(1.0, 4.0), (100.0, 2.0)], 1.0) is None
    assert first_reach([(7.0, 1.0), (9.0, 2.0)], 3.0) == 7.0


def test_the_axes_of_a_run(tmp_path):
    make_run(tmp_path, "a")
    _, found = curves_of(tmp_path, "a", usd_per_hour=6.0)
    (curves,) = found.values()
    # 1,000 tokens, 1e9 FLOPs and 0.6 s a step, a cent for each 6 s.
    at = {axis: interpolated(list(points), 50.0) for axis, points in curves.at.items()}
    assert at == pytest.approx({"steps": 50, "tokens": 50_000, "flops": 5e10, "minutes": 0.5, "usd": 0.05})
    assert curves.loss[0] == (1.0, pytest.approx(8.0))


def test_the_end_of_the_bpb_curve_is_the_final_model_on_the_same_documents(tmp_path):
    run_dir = make_run(tmp_path, "a", noise=0.3)
    _, found = curves_of(tmp_path, "a")
    (curves,) = found.values()
    nats = read_document_scores(find_document_scores(run_dir)[0]).nats
    assert curves.num_documents == 50
    assert curves.bpb[-1] == (100.0, pytest.approx(nats[:50].sum() / math.log(2) / 5000))
    assert curves.bpb[-2][0] == 90.0


def test_what_one_needs_to_get_as_far_as_another(tmp_path):
    make_run(tmp_path, "a", seed=1, bpb=2.0, noise=0)
    make_run(tmp_path, "b", seed=1, bpb=1.5, noise=0, plan_lr=0.1)
    groups, found = curves_of(tmp_path, "a", "b")
    one = needed(groups[0], groups[1], found)
    # The baseline's end is its final model on the first 50 documents.
    target = found[str(groups[0].runs[0].path)].bpb[-1][1]
    assert one.target == pytest.approx(target)
    # b's curve is 1.5 + 2 exp(-step / 20) at each tenth step; on a line in log(step) between the two around the target.
    steps = range(10, 100, 10)
    curve = [(step, 1.5 + 2 * math.exp(-step / 20)) for step in steps]
    before = max(step for step, y in curve if y > target)
    y0, y1 = 1.5 + 2 * math.exp(-before / 20), 1.5 + 2 * math.exp(-(before + 10) / 20)
    step = before * ((before + 10) / before) ** ((y0 - target) / (y0 - y1))
    assert one.amounts["steps"] == pytest.approx(step)
    assert one.amounts["tokens"] == pytest.approx(1000 * step)
    assert one.baseline["tokens"] == pytest.approx(100_000)
    assert needed(groups[1], groups[0], found).amounts is None
