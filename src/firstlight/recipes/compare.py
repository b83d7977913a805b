"""Runs set against each other: what differs, the final numbers, differences in pairs with a verdict, and the curves.

words -> groups (seeds of one setting) -> scores by document -> differences -> a table, a page, or JSON
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.errors import ConfigError
from firstlight.eval.paired import verdict, what_is_in_the_error
from firstlight.recipes.compare_curves import Needed, RunCurves, needed, run_curves
from firstlight.recipes.compare_groups import ConfigDifference, Group, group_runs, identity, what_differs
from firstlight.recipes.compare_scores import Verdict, compare_groups, final_scores, group_score
from firstlight.runtime.metrics import read_metrics


@dataclass(frozen=True)
class FinalNumbers:
    """Final numbers of a group, means over its seeds. spread: standard deviation of the seeds' bpb; stderr: over documents."""

    name: str
    runs: tuple[str, ...]
    bpb: float | None
    stderr: float | None
    spread: float | None
    steps: float | None
    tokens: float | None
    flops: float | None
    minutes: float | None
    usd: float | None


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of runs side by side. The first group is the baseline; verdicts has one for each other."""

    groups: tuple[Group, ...]
    differs: tuple[ConfigDifference, ...]
    final: tuple[FinalNumbers, ...]
    verdicts: tuple[Verdict, ...]
    needed: tuple[Needed, ...]
    curves: dict[str, RunCurves]
    notes: tuple[str, ...]
    usd_per_hour: float | None

    def sentence(self, found: Verdict) -> str:
        """A verdict in plain words."""
        if found.difference is None:
            return f"no verdict on {found.baseline.name} and {found.other.name}: {found.refused}"
        return verdict(found.difference, found.baseline.name, found.other.name)

    def small_print(self, found: Verdict) -> list[str]:
        """What a verdict's error covers, and what would make it better."""
        lines = []
        if found.difference is not None:
            spreads = [(one.name, one.spread) for one in self.final if one.spread is not None]
            lines.append(what_is_in_the_error(found.difference, spread_elsewhere=spreads[0] if spreads else None))
            if identity(found.baseline.record) == identity(found.other.record):
                lines.append("their settings are the same, so a difference between them is what seeds make")
        if found.advice:
            lines.append(found.advice if found.difference is not None else f"to compare them: {found.advice}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON takes it, without the curves."""
        return {
            "baseline": self.groups[0].name,
            "groups": [
                {
                    "name": group.name,
                    "runs": [run.name for run in group.runs],
                    "seeds": [run.seed for run in group.runs],
                }
                for group in self.groups
            ],
            "differs": [dataclasses.asdict(one) for one in self.differs],
            "final": [dataclasses.asdict(one) for one in self.final],
            "verdicts": [
                {
                    "baseline": found.baseline.name,
                    "other": found.other.name,
                    "says": self.sentence(found),
                    "outcome": found.difference.outcome if found.difference else "no verdict",
                    "difference": dataclasses.asdict(found.difference) if found.difference else None,
                    "refused": found.refused,
                    "small_print": self.small_print(found),
                }
                for found in self.verdicts
            ],
            "needed": [dataclasses.asdict(one) for one in self.needed],
            "usd_per_hour": self.usd_per_hour,
            "notes": list(self.notes),
        }


def compare_runs(
    words: Sequence[str],
    runs_dir: Path,
    *,
    group: bool = True,
    val_hash: str | None = None,
    usd_per_hour: float | None = None,
) -> Comparison:
    """Compare the runs that ``words`` name (see `compare_groups.group_runs`).

    val_hash: the beginning of the hash of the documents to compare on; each run's own validation documents where None.
    usd_per_hour: what the machine costs; where None, money is left out.
    Raises ConfigError for names that are unknown or said twice and for fewer than two groups, DataError for damaged files.
    """
    if usd_per_hour is not None and not 0 <= usd_per_hour < 1e9:
        raise ConfigError(f"--usd-per-hour {usd_per_hour:g}", hint="give the machine's price in US dollars an hour")
    groups, notes = group_runs(words, runs_dir, group=group)
    if len(groups) < 2:
        runs = groups[0].runs
        raise ConfigError(
            f"there is one setting here ({', '.join(run.name for run in runs)}), so nothing to compare"
            if len(runs) > 1
            else f"one run ({runs[0].name}), so nothing to compare",
            hint="compare its seeds one by one with --no-group" if len(runs) > 1 else "name at least two runs",
        )
    scores = final_scores(groups, val_hash=val_hash)
    curves: dict[str, RunCurves] = {}
    for run in (run for one in groups for run in one.runs):
        damaged: list[str] = []
        rows = read_metrics(run.path / "metrics.jsonl", damaged=damaged)
        curves[str(run.path)] = run_curves(run, rows, scores[str(run.path)], usd_per_hour=usd_per_hour)
        if damaged:
            notes.append(f"{run.name}: {len(damaged)} damaged lines of metrics.jsonl were left out of its curves")
        one_score = scores[str(run.path)]
        if one_score.cut_from is not None:
            notes.append(
                f"{run.name} was scored on {one_score.cut_from:,} documents; the first {one_score.num_documents:,} of them"
                " are used, since another run has no more"
            )
        if run.record.shown_status() != "done":
            notes.append(f"{run.name} is {run.record.shown_status()}, not done")
    verdicts = tuple(compare_groups(groups[0], other, scores) for other in groups[1:])
    if len(verdicts) > 2:
        notes.append(
            f"{len(verdicts)} intervals of 95 % each: with many comparisons one in twenty is off by chance alone"
        )
    if usd_per_hour is None:
        notes.append("money is left out, since no price is known; give one with --usd-per-hour")
    final = tuple(_final_numbers(one, group_score(one, scores), usd_per_hour=usd_per_hour) for one in groups)
    # Where two scores cannot be set against each other, their curves cannot either.
    reached = [needed(groups[0], one.other, curves) for one in verdicts if one.difference is not None]
    return Comparison(
        tuple(groups), tuple(what_differs(groups)), final, verdicts, tuple(one for one in reached if one is not None),
        curves, tuple(notes), usd_per_hour,
    )  # fmt: skip


def _final_numbers(
    group: Group, score: tuple[float | None, float | None, float | None], *, usd_per_hour: float | None
) -> FinalNumbers:
    records = [run.record for run in group.runs]
    tokens = _mean([record.final.get("tokens") for record in records])
    flops_per_token = group.record.config.get("plan", {}).get("flops_per_token")
    hours = _mean([record.cost.get("elapsed_s") for record in records])
    hours = None if hours is None else hours / 3600
    return FinalNumbers(
        name=group.name,
        runs=tuple(run.name for run in group.runs),
        bpb=score[0],
        stderr=score[1],
        spread=score[2],
        steps=_mean([record.final.get("steps") for record in records]),
        tokens=tokens,
        flops=tokens * flops_per_token if tokens is not None and flops_per_token else None,
        minutes=None if hours is None else 60 * hours,
        usd=None if hours is None or usd_per_hour is None else hours * usd_per_hour,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
