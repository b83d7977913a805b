"""Which scores are set against each other, and why others are not."""

from __future__ import annotations

import json

import pytest
from comparable import VAL, make_run

from firstlight.recipes.compare_groups import group_runs
from firstlight.recipes.compare_scores import compare_groups, final_scores, group_score


def verdict(runs_dir, *words, val_hash=None):
    (a, b), _ = group_runs(words, runs_dir, group=True)
    scores = final_scores([a, b], val_hash=val_hash)
    return compare_groups(a, b, scores), scores, (a, b)


def test_scores_by_document_are_compared_in_pairs(tmp_path):
    make_run(tmp_path, "a", seed=1, bpb=2.00)
    make_run(tmp_path, "b", seed=2, bpb=1.98, plan_lr=0.1)
    found, scores, (a, _) = verdict(tmp_path, "a", "b")
    assert found.difference.paired
    # 200 documents of equal length whose own noise is 0.01 on either side: sqrt(2) 0.01 / sqrt(200).
    assert found.difference.stderr == pytest.approx(0.01 * 2**0.5 / 200**0.5, rel=0.2)
    assert found.difference.difference == pytest.approx(0.02, abs=0.003)
    assert found.difference.outcome == "b is better"
    bpb, stderr, spread = group_score(a, scores)
    assert bpb == pytest.approx(2.0, abs=0.003)
    assert stderr == pytest.approx(0.3 / 200**0.5, rel=0.2)
    assert spread is None


def test_without_scores_by_document_the_errors_are_joined_and_the_command_is_said(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, plan_lr=0.1, with_documents=False)
    found, _, _ = verdict(tmp_path, "a", "b")
    assert not found.difference.paired
    assert "no scores by document of b; to have them: firstlight eval bpb b" in found.advice


@pytest.mark.parametrize(
    ("change", "why", "command"),
    [
        ({"val_hash": "9" * 64}, "different documents (abababababab and 999999999999)",
         "firstlight eval bpb b --data /home/ann/wiki --val last --max-seq-len 256 and then --val-hash abababababab here"),
        ({"window": 512}, "in windows of 256 tokens and b in windows of 512", "firstlight eval bpb b --max-seq-len 256"),
        ({"window": 128}, "in windows of 256 tokens and b in windows of 128", "firstlight eval bpb a --max-seq-len 128"),
        ({"status": "stopped"}, "b: it is stopped and has no final score", "firstlight eval bpb b"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_what_would_help(tmp_path, change, why, command):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, plan_lr=0.1, **change)
    found, _, _ = verdict(tmp_path, "a", "b")
    assert found.difference is None
    assert why in found.refused
    assert found.advice == command


def test_runs_with_other_documents_can_be_compared_on_a_set_that_both_were_scored_on(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, bpb=1.9, plan_lr=0.1, val_hash="9" * 64)
    # What `firstlight eval bpb b --data ...` leaves behind.
    made = make_run(tmp_path / "elsewhere", "b", seed=2, bpb=1.9)
    (path,) = (made / "scores").iterdir()
    path.rename(tmp_path / "b" / "scores" / path.name)
    found, _, _ = verdict(tmp_path, "a", "b", val_hash=VAL[:12])
    assert found.difference.outcome == "b is better"
    found, _, _ = verdict(tmp_path, "a", "b", val_hash="77")
    assert "a: it was not scored on the documents 77" in found.refused


def test_a_score_of_another_step_is_not_the_final_one(tmp_path):
    run_dir = make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, plan_lr=0.1)
    (path,) = (run_dir / "scores").iterdir()
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "step": 50}), *rest]) + "\n")
    found, _, _ = verdict(tmp_path, "a", "b")
    assert not found.difference.paired


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    run_dir = make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, plan_lr=0.1)
    (path,) = (run_dir / "scores").iterdir()
    first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, json.dumps({**json.loads(second), "nats": None}), *rest]) + "\n")
    found, _, _ = verdict(tmp_path, "a", "b")
    assert "not finite on 1 documents" in found.refused


def test_a_run_that_was_stopped_is_compared_by_its_newest_score(tmp_path):
    run_dir = make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, plan_lr=0.1)
    values = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**values, "status": "stopped", "final": {}}))
    found, _, _ = verdict(tmp_path, "a", "b")
    assert found.difference.paired


def test_a_run_that_goes_on_is_waited_for(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, plan_lr=0.1, status="running")
    found, _, _ = verdict(tmp_path, "a", "b")
    assert found.advice == "wait for b"


def test_where_one_was_scored_on_fewer_documents_the_first_ones_of_both_are_compared(tmp_path):
    make_run(tmp_path, "a", seed=1, bpb=2.0, noise=0)
    make_run(tmp_path, "b", seed=2, bpb=1.9, noise=0, plan_lr=0.1)
    (path,) = (tmp_path / "b" / "scores").iterdir()
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "num_documents": 50}), *rest[:50]]) + "\n")
    found, scores, (a, b) = verdict(tmp_path, "a", "b")
    assert found.difference.num_documents == 50
    assert found.difference.difference == pytest.approx(0.1)
    both = [scores[str(group.runs[0].path)] for group in (a, b)]
    assert [(one.num_documents, one.cut_from) for one in both] == [(50, 200), (50, None)]
    # The score is that of the same 50 documents.
    assert both[0].bpb - both[1].bpb == pytest.approx(0.1)


def test_scores_without_documents_of_different_sizes_are_refused(tmp_path):
    make_run(tmp_path, "a", seed=1, with_documents=False)
    make_run(tmp_path, "b", seed=2, n=150, plan_lr=0.1, with_documents=False)
    found, _, _ = verdict(tmp_path, "a", "b")
    assert "on 200 documents of the set and b on 150" in found.refused
    # Scoring all of one would not do, while the other has its 200 only.
    assert found.advice == "firstlight eval bpb a && firstlight eval bpb b"
