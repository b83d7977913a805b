"""A study that was never trained: plans and outcomes whose scores follow a known law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from firstlight.recipes.scale.cell import Common
from firstlight.recipes.scale.grid import Speed, make_cells, rules_for
from firstlight.recipes.scale.results import StudyResults, results_of
from firstlight.recipes.scale.study import Outcome, Study

E, A, ALPHA, B, BETA = 0.9, 30.0, 0.3, 200.0, 0.4


def law(num_params: float, num_tokens: float) -> float:
    """The surface that made-up scores follow."""
    return E + A * num_params**-ALPHA + B * num_tokens**-BETA


@pytest.fixture
def make_study() -> Callable[..., Study]:
    def make(
        *, depths: Sequence[int] = (1, 2, 3), budgets: Sequence[float] = (4e12, 1.2e13, 3.6e13), seeds: Sequence[int] = (1337,),
        name: str = "mine",
    ) -> Study:  # fmt: skip
        rules = rules_for(depths, vocab_size=2048, seq_len=256, num_score_tokens=200_000)
        speeds = {depth: Speed(train_s=1e-5 * depth, score_s=3e-6 * depth) for depth in depths}
        cells = make_cells(name, depths, budgets, rules, seeds=seeds, speeds=speeds)
        return Study(
            name=name, rules=rules, common=Common(data="texts/wiki", val="last", final_documents=200), depths=tuple(depths),
            budgets=tuple(budgets), seeds=tuple(seeds), cells=cells, minutes=34.0, seed_noise=0.005, num_train_tokens=8_000_000,
            num_val_documents=1000, num_score_tokens=200_000, prepare_s=20.0, notes=("a note",), launches_s=(600.0, 300.0),
        )  # fmt: skip

    return make


@pytest.fixture
def make_results(make_study: Callable[..., Study], tmp_path: Path) -> Callable[..., StudyResults]:
    """Results whose scores follow the law, with a shift for each cell by its place."""

    def make(*, shifts: Sequence[float] = (), missing: Sequence[str] = (), **options: object) -> StudyResults:
        study = make_study(**options)
        outcomes = []
        for i, cell in enumerate(study.cells):
            if cell.run in missing:
                outcomes.append(Outcome(cell, "failed", problem="signal 9: out of memory <b>"))
                continue
            bpb = law(cell.num_params, cell.num_tokens) + (shifts[i % len(shifts)] if shifts else 0.0)
            outcomes.append(
                Outcome(
                    cell, "done", bpb=bpb, stderr=0.012, num_tokens=cell.num_tokens, elapsed_s=90.0, train_s=70.0,
                    val_hash="v", tokenizer_hash="t",
                )
            )  # fmt: skip
        return results_of(study, outcomes, tmp_path / "runs", num_draws=60)

    return make
