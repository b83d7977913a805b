"""Claims of recipes/kept_scores.py: what is kept of an evaluation, by document."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firstlight.eval.bpb import DocumentSums
from firstlight.eval.document_scores import DocumentScores, read_document_scores
from firstlight.recipes.kept_scores import document_scores, keep_scores
from firstlight.tokens.document import Document

DOCUMENTS = [
    Document(np.array([1, 2]), source="a.txt:0"),
    Document(np.array([], int), source="a.txt:1"),
    Document(np.array([3]), source="b.txt:0"),
]


def scores(n: int):
    sums = DocumentSums(np.array([[1.0, 0.5], [2.0, 0.0]])[:n], np.array([[3, 4], [5, 0]])[:n], np.ones((n, 2), int))
    return document_scores(
        sums, DOCUMENTS, run="tiny", step=3, val_hash="ab" * 32, tokenizer_hash="cd" * 32, data="texts", val="all",
        max_seq_len=32, dtype="fp32",
    )  # fmt: skip


def test_stretches_are_summed_and_each_document_has_its_shard() -> None:
    found = scores(2)
    assert (found.nats.tolist(), found.num_bytes.tolist(), found.num_tokens.tolist()) == ([1.5, 2.0], [7, 5], [2, 2])
    assert found.slices == ("a.txt", "b.txt")
    assert (found.header["num_documents_total"], found.header["num_empty"]) == (3, 1)
    assert found.is_whole
    assert not scores(1).is_whole


def test_a_score_of_fewer_documents_is_not_written_over_one_of_more(tmp_path: Path) -> None:
    problems: list[str] = []
    for n, kept in [(1, 1), (2, 2), (1, 2)]:
        path = keep_scores(tmp_path, scores(n), warn=problems.append)
        assert path is not None
        assert len(read_document_scores(path)) == kept
    assert not problems


def test_a_damaged_file_is_said_and_written_anew_and_a_disk_that_refuses_is_a_warning(tmp_path: Path) -> None:
    problems: list[str] = []
    path = keep_scores(tmp_path, scores(2), warn=problems.append)
    assert path is not None
    path.write_text("{")
    assert keep_scores(tmp_path, scores(1), warn=problems.append) == path
    assert "written anew" in problems[0]
    (tmp_path / "full").write_text("a file where the folder should be")
    assert keep_scores(tmp_path / "full", scores(1), warn=problems.append) is None
    assert "could not be written" in problems[1]


def test_scores_of_another_window_or_dtype_take_their_place_with_a_word(tmp_path: Path) -> None:
    problems: list[str] = []
    first = scores(2)
    path = keep_scores(tmp_path, first, warn=problems.append)
    other = DocumentScores(
        first.header | {"max_seq_len": 16}, first.nats, first.num_bytes, first.num_tokens, first.slices
    )
    assert keep_scores(tmp_path, other, warn=problems.append) == path
    assert path is not None
    assert read_document_scores(path).header["max_seq_len"] == 16
    [said] = problems
    assert "windows of 32 tokens and are replaced by those of windows of 16 tokens" in said
