"""From a study's finished cells to its fits, as values and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.errors import DataError
from firstlight.eval.document_scores import find_document_scores, read_document_scores
from firstlight.recipes.scale.fit import NUM_DRAWS, Point, StudyFit, document_shifts, fit_study, pooled_seed_noise
from firstlight.recipes.scale.study import Outcome, Study


@dataclass(frozen=True)
class StudyResults:
    """Outcomes of all cells and the fits over those that are done (None where none is)."""

    study: Study
    outcomes: tuple[Outcome, ...]
    fit: StudyFit | None

    @property
    def num_done(self) -> int:
        return sum(outcome.is_done for outcome in self.outcomes)

    @property
    def is_complete(self) -> bool:
        return self.num_done == len(self.outcomes)


def results_of(
    study: Study, outcomes: Sequence[Outcome], runs_dir: Path, *, num_draws: int = NUM_DRAWS
) -> StudyResults:
    """Fit what is done.

    Raises DataError where cells were scored on different documents or learnt from other tokens: they do not compare.
    """
    done = [outcome for outcome in outcomes if outcome.is_done]
    for what in ("val_hash", "tokenizer_hash"):
        found = {getattr(outcome, what) for outcome in done}
        if len(found) > 1:
            raise DataError(
                f"the cells of {study.name} have {len(found)} different {what}: their scores do not compare",
                hint="the text has changed between them: begin another study",
            )
    if not done:
        return StudyResults(study, tuple(outcomes), None)
    groups: dict[tuple[int, int], list[Outcome]] = {}
    for outcome in done:
        groups.setdefault((outcome.cell.budget, outcome.cell.depth), []).append(outcome)
    measured = pooled_seed_noise([[o.bpb or 0.0 for o in group] for group in groups.values()])
    points = [_point(group) for group in groups.values()]
    fit = fit_study(
        points,
        seed_noise=study.seed_noise if measured is None else measured,
        is_noise_measured=measured is not None,
        document_shifts=_shifts(list(groups.values()), runs_dir, num_draws=num_draws),
        num_draws=num_draws,
    )
    return StudyResults(study, tuple(outcomes), fit)


def _point(group: Sequence[Outcome]) -> Point:
    cell = group[0].cell
    tokens = [outcome.num_tokens or outcome.cell.num_tokens for outcome in group]
    mean_tokens = round(sum(tokens) / len(tokens))
    return Point(
        budget=cell.budget, flops=float(cell.flops_per_token) * mean_tokens, num_params=cell.num_params,
        num_tokens=mean_tokens, bpb=float(np.mean([outcome.bpb or 0.0 for outcome in group])),
        stderr=float(np.mean([outcome.stderr or 0.0 for outcome in group])), num_seeds=len(group),
    )  # fmt: skip


def _shifts(groups: Sequence[Sequence[Outcome]], runs_dir: Path, *, num_draws: int) -> np.ndarray | None:
    """How the scores move with the documents, from the scores by document; None where a cell has none, or others."""
    rows, num_bytes = [], None
    for group in groups:
        nats = []
        for outcome in group:
            # A cell may have been scored on another text since.
            found = [read_document_scores(path) for path in find_document_scores(runs_dir / outcome.cell.run)]
            found = [one for one in found if one.header.get("val_hash") == outcome.val_hash]
            if not found:
                return None
            scores = found[-1]
            if not np.all(np.isfinite(scores.nats)) or (
                num_bytes is not None and not np.array_equal(num_bytes, scores.num_bytes)
            ):
                return None
            num_bytes = scores.num_bytes
            nats.append(scores.nats)
        rows.append(np.mean(nats, axis=0))
    if num_bytes is None or len(num_bytes) < 2:
        return None
    return document_shifts(np.stack(rows), num_bytes, num_draws=num_draws, seed=1)


def to_json(results: StudyResults) -> dict[str, Any]:
    """One JSON object of a study: its plan in short, every cell, both fits. Intervals are {value, low, high}; null: not
    determined.
    """
    study = results.study
    return {
        "name": study.name,
        "status": "done" if results.is_complete else "incomplete",
        "data": study.common.data,
        "vocab_size": study.rules.vocab_size,
        "max_seq_len": study.rules.seq_len,
        "preset": study.rules.preset,
        "minutes": study.minutes,
        "expected_s": study.expected_s,
        "launches_s": list(study.launches_s),
        "num_train_tokens": study.num_train_tokens,
        "num_score_tokens": study.num_score_tokens,
        "cells": [
            {
                **asdict(outcome.cell), "num_tokens": outcome.num_tokens or outcome.cell.num_tokens,
                "flops": outcome.cell.flops, "tokens_per_param": outcome.cell.tokens_per_param, "status": outcome.status,
                "val_bpb": outcome.bpb, "val_bpb_stderr": outcome.stderr, "elapsed_s": outcome.elapsed_s,
                "train_s": outcome.train_s, "problem": outcome.problem or None,
            }
            for outcome in results.outcomes
        ],
        "fit": None if results.fit is None else asdict(results.fit),
        "notes": list(study.notes),
    }  # fmt: skip
