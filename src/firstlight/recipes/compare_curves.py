"""Curves of compared settings over steps, tokens, FLOPs, minutes and money; and what one needs to get as far as another."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.eval.document_scores import bits_per_byte
from firstlight.recipes.compare_groups import Group, Run
from firstlight.recipes.compare_scores import RunScore
from firstlight.recipes.report_svg import smooth

AXES = {"tokens": "tokens", "steps": "step", "flops": "FLOPs", "minutes": "minutes", "usd": "US dollars"}
"""Axes of x and their labels."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class RunCurves:
    """Curves of one run over its steps. loss: smoothed. bpb: scores on the first ``num_documents`` documents of the set.

    at: for each axis a map of steps to its value, as rising points (step, value).
    """

    loss: Points
    bpb: Points
    num_documents: int | None
    at: Mapping[str, Points]


@dataclass(frozen=True)
class Needed:
    """What a setting needs to reach the baseline's final bpb. Amounts are None where it does not get there.

    target: the baseline's final bpb on the documents of the curves. baseline: what the baseline itself took.
    """

    name: str
    target: float
    num_documents: int | None
    amounts: Mapping[str, float] | None
    baseline: Mapping[str, float]


def run_curves(
    run: Run, rows: Sequence[Mapping[str, Any]], score: RunScore, *, usd_per_hour: float | None
) -> RunCurves:
    """The curves of a run from the rows of its metrics; of rows of the same step the last counts.

    The end of the bpb curve is the final model on the documents of the scores before it, where the scores by document are
    known; a final score on other documents than the rest of the curve is left out.
    """
    train = _by_step(row for row in rows if row.get("kind") == "train" and _is_number(row.get("loss_nats")))
    evals = _by_step(row for row in rows if row.get("kind") == "eval" and _is_number(row.get("val_bpb")))
    # A train row counts the updates before it; its tokens and seconds include its own.
    tokens = [(0.0, 0.0), *((step + 1.0, float(row["tokens_seen"])) for step, row in train if "tokens_seen" in row)]
    seconds = [
        (0.0, 0.0),
        *((step + 1.0, float(row["elapsed_s"])) for step, row in train if _is_number(row.get("elapsed_s"))),
    ]
    flops_per_token = run.record.config.get("plan", {}).get("flops_per_token")
    at: dict[str, Points] = {"steps": [(step, step) for step, _ in tokens], "tokens": tokens}
    if flops_per_token:
        at["flops"] = [(step, value * flops_per_token) for step, value in tokens]
    if len(seconds) > 1:
        at["minutes"] = [(step, value / 60) for step, value in seconds]
        if usd_per_hour is not None:
            at["usd"] = [(step, value / 3600 * usd_per_hour) for step, value in seconds]
    loss = smooth([(step + 1.0, float(row["loss_nats"])) for step, row in train])
    counts = [row.get("num_documents") for _, row in evals if not row.get("final")]
    num_documents = counts[-1] if counts else None
    bpb = [(step, row["val_bpb"]) for step, row in evals if row.get("num_documents") == num_documents]
    last = run.record.final.get("steps")
    if bpb and last and num_documents and score.scores is not None and len(score.scores) >= num_documents:
        first = slice(0, num_documents)
        end = bits_per_byte(score.scores.nats[first], score.scores.num_bytes[first])[0]
        bpb = [*((step, value) for step, value in bpb if step < last), (float(last), end)]
    elif not bpb:
        bpb = [(step, row["val_bpb"]) for step, row in evals]
    return RunCurves(loss, bpb, num_documents, at)


def over(curve: Points, at: Points) -> Points:
    """A curve over steps as one over another axis, whose value at each step is in ``at``."""
    return [(interpolated(at, step), value) for step, value in curve]


def mean_curve(curves: Sequence[Points]) -> Points:
    """Mean of several curves at the x of the first, as far as all of them go; [] where they do not meet."""
    curves = [curve for curve in curves if curve]
    if not curves:
        return []
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    return [
        (x, sum(interpolated(curve, x) for curve in curves) / len(curves)) for x, _ in curves[0] if low <= x <= high
    ]


def interpolated(points: Points, x: float) -> float:
    """y at x on the straight lines between points with rising x; the end's y outside."""
    i = bisect_left(points, x, key=lambda point: point[0])
    if i == 0:
        return points[0][1]
    if i == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y1 if x1 <= x0 else y0 + (x - x0) / (x1 - x0) * (y1 - y0)


def first_reach(curve: Points, target: float) -> float | None:
    """The first x at which a curve comes down to ``target``; between two points it falls with the logarithm of x (a straight
    line from x = 0). None where it never does.

    >>> first_reach([(0.0, 4.0), (100.0, 2.0)], 3.0)
    50.0
    """
    for i, (x, y) in enumerate(curve):
        if y > target:
            continue
        if i == 0 or y == target:
            return x
        x0, y0 = curve[i - 1]
        part = (y0 - target) / (y0 - y)
        return x0 + part * (x - x0) if x0 <= 0 else math.exp(math.log(x0) + part * math.log(x / x0))
    return None


def needed(baseline: Group, other: Group, curves: Mapping[str, RunCurves]) -> Needed | None:
    """What ``other`` needs to reach the final bpb of ``baseline``, on the documents of both curves (means over seeds).

    None where a curve is missing, or the curves were scored on different numbers of documents.
    """
    sides = [[curves[str(run.path)] for run in group.runs] for group in (baseline, other)]
    counts = {one.num_documents for side in sides for one in side}
    means = [mean_curve([one.bpb for one in side]) for side in sides]
    if len(counts) > 1 or not all(means) or min(len(mean) for mean in means) < 2:
        return None
    target = means[0][-1][1]
    step = first_reach(means[1], target)
    return Needed(
        other.name, target, counts.pop(), None if step is None else _amounts(sides[1], step),
        _amounts(sides[0], means[0][-1][0]),
    )  # fmt: skip


def _amounts(side: Sequence[RunCurves], step: float) -> dict[str, float]:
    axes = [axis for axis in AXES if all(axis in one.at for one in side)]
    return {axis: sum(interpolated(list(one.at[axis]), step) for one in side) / len(side) for axis in axes}


def _by_step(rows: Any) -> list[tuple[float, Mapping[str, Any]]]:
    found = {float(row["step"]): row for row in rows if isinstance(row.get("step"), int)}
    return sorted(found.items(), key=lambda item: item[0])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
