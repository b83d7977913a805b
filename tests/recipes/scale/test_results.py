"""From outcomes to fits: seeds are averaged, scores by document are used, what does not compare is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from firstlight.errors import DataError
from firstlight.eval.document_scores import DocumentScores, scores_path, write_document_scores
from firstlight.recipes.scale.results import results_of, to_json
from firstlight.runtime.metrics import strict_json


def test_a_whole_study_is_fitted(make_results) -> None:
    results = make_results()
    assert results.is_complete
    assert len(results.fit.points) == 9
    # The made-up law: alpha 0.3, beta 0.4.
    assert results.fit.surface.params_exponent.value == pytest.approx(0.4 / 0.7, abs=0.01)
    assert not results.fit.is_noise_measured


def test_seeds_are_averaged_and_their_noise_is_measured(make_results) -> None:
    results = make_results(seeds=(1, 2), shifts=(0.01, -0.01))
    assert [point.num_seeds for point in results.fit.points] == [2] * 9
    # Each pair is +0.01 and -0.01 about its mean: the sample variance is 2 * 0.01^2.
    assert results.fit.seed_noise == pytest.approx(0.01 * np.sqrt(2), rel=1e-6)
    assert results.fit.is_noise_measured


def test_failed_cells_are_left_out(make_results) -> None:
    results = make_results(missing=("mine-d1-c3", "mine-d2-c3"))
    assert (results.num_done, results.is_complete) == (7, False)
    assert [b.budget for b in results.fit.budgets] == [1, 2]
    assert make_results(missing=[f"mine-d{d}-c{c}" for d in (1, 2, 3) for c in (1, 2, 3)]).fit is None


@pytest.mark.parametrize("what", ["val_hash", "tokenizer_hash"])
def test_scores_on_other_documents_are_refused(make_results, tmp_path, what) -> None:
    results = make_results()
    outcomes = [replace(results.outcomes[0], **{what: "another"}), *results.outcomes[1:]]
    with pytest.raises(DataError, match=f"2 different {what}"):
        results_of(results.study, outcomes, tmp_path)


def test_scores_by_document_are_drawn_together(make_results, tmp_path) -> None:
    results = make_results()
    draw = np.random.default_rng(0)
    num_bytes = draw.integers(100, 1000, 60)
    hardness = 1 + 0.2 * draw.standard_normal(60)
    header = {
        "run": "x", "step": 5, "val_hash": "ab" * 32, "tokenizer_hash": "t", "data": "d", "val": "last", "max_seq_len": 32,
        "dtype": "fp32", "num_documents_total": 60,
    }  # fmt: skip
    for outcome in results.outcomes:
        scores = DocumentScores(
            header=header, nats=num_bytes * hardness * outcome.bpb * np.log(2), num_bytes=num_bytes,
            num_tokens=num_bytes // 3, slices=("s",) * 60,
        )  # fmt: skip
        path = scores_path(tmp_path / "runs" / outcome.cell.run, step=5, val_hash=header["val_hash"])
        write_document_scores(path, scores)
    outcomes = [replace(outcome, val_hash=header["val_hash"]) for outcome in results.outcomes]
    # A later score of a cell on another text is not taken for it.
    scores = replace(scores, header=header | {"step": 6, "val_hash": "cd" * 32}, num_bytes=num_bytes + 1)
    cell_dir = tmp_path / "runs" / outcomes[0].cell.run
    write_document_scores(scores_path(cell_dir, step=6, val_hash="cd" * 32), scores)
    found = results_of(results.study, outcomes, tmp_path / "runs", num_draws=100)
    assert "drawn again" in found.fit.documents
    other = tmp_path / "runs" / results.outcomes[3].cell.run / "scores"
    for path in other.iterdir():
        path.unlink()
    found = results_of(results.study, outcomes, tmp_path / "runs", num_draws=100)
    assert "too wide" in found.fit.documents


def test_json_holds_every_cell_and_both_fits(make_results) -> None:
    value = json.loads(json.dumps(strict_json(to_json(make_results()))[0], allow_nan=False))
    assert value["status"] == "done"
    assert len(value["cells"]) == 9
    assert set(value["cells"][0]) >= {"run", "depth", "flops", "num_tokens", "val_bpb", "expected_s", "status"}
    assert set(value["fit"]["budgets"][0]["best_params"]) == {"value", "low", "high"}
    assert set(value["fit"]["surface"]) >= {"E", "alpha", "beta", "predicted", "ratios"}
