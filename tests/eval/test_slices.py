"""Claims of eval/slices.py, against sums written out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from firstlight.eval.bpb import DocumentSums
from firstlight.eval.slices import slices_by

LN2 = math.log(2)
SHARDS = ("wiki/a.txt", "books.jsonl", "wiki/b.txt", "wiki/a.txt")
# Bits of each document in places 1 to 16 and from 17 on; bytes; tokens.
SUMS = DocumentSums(
    np.array([[8.0, 2.0], [3.0, 0.0], [6.0, 4.0], [1.0, 0.0]]) * LN2,
    np.array([[4, 2], [3, 0], [4, 4], [2, 0]]),
    np.array([[2, 1], [1, 0], [2, 2], [1, 0]]),
)


def table(by) -> dict[str, tuple]:
    return {part.name: (part.val_bpb, part.num_documents, part.num_bytes) for part in slices_by(by, SUMS, SHARDS)}


def test_by_corpus_and_by_shard() -> None:
    assert table("corpus") == {"wiki": (pytest.approx(21 / 16), 3, 16), "books": (pytest.approx(1.0), 1, 3)}
    assert table("shard") == {
        "wiki/a.txt": (pytest.approx(11 / 8), 2, 8),
        "books.jsonl": (pytest.approx(1.0), 1, 3),
        "wiki/b.txt": (pytest.approx(10 / 8), 1, 8),
    }


def test_by_length_from_short_to_long() -> None:
    # Bytes 6, 3, 8, 2: in order the fourth, the second, the first, the third document.
    assert table("length") == {
        "shortest quarter (2 to 2 bytes)": (pytest.approx(1 / 2), 1, 2),
        "second quarter (3 to 3 bytes)": (pytest.approx(3 / 3), 1, 3),
        "third quarter (6 to 6 bytes)": (pytest.approx(10 / 6), 1, 6),
        "longest quarter (8 to 8 bytes)": (pytest.approx(10 / 8), 1, 8),
    }


def test_by_position_only_documents_that_reach_it_count() -> None:
    assert table("position") == {
        "places 1 to 16": (pytest.approx(18 / 13), 4, 13),
        "from place 17 on": (pytest.approx(6 / 6), 2, 6),
    }


def test_the_error_is_the_ratio_estimators_over_the_parts_documents() -> None:
    # Documents with (10 bits, 6 bytes), (10, 8) and (1, 2): R = 21/16.
    [wiki, books] = slices_by("corpus", SUMS, SHARDS)
    squares = sum((bits - 21 / 16 * size) ** 2 for bits, size in [(10, 6), (10, 8), (1, 2)])
    assert wiki.val_bpb_stderr == pytest.approx(math.sqrt(3 / 2 * squares) / 16)
    assert books.val_bpb_stderr is None


def test_parts_weighted_by_their_bytes_are_the_whole() -> None:
    whole = 24 / 19
    for by in ("corpus", "shard", "length", "position"):
        parts = slices_by(by, SUMS, SHARDS)
        assert sum(part.val_bpb * part.num_bytes for part in parts) / 19 == pytest.approx(whole)


def test_a_loss_that_is_not_finite_is_null_in_json() -> None:
    sums = DocumentSums(np.array([[math.nan]]), np.array([[1]]), np.array([[1]]))
    [part] = slices_by("shard", sums, ("a",))
    assert json.loads(json.dumps(part.to_dict(), allow_nan=False))["val_bpb"] is None
