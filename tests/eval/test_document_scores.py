"""Claims of eval/document_scores.py, against hand arithmetic, plain reading of the file and the bootstrap."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from firstlight.errors import DataError
from firstlight.eval.document_scores import (
    DocumentScores,
    bits_per_byte,
    find_document_scores,
    read_document_scores,
    scores_path,
    slices_of,
    write_document_scores,
)
from firstlight.tokens.document import Document

VAL_HASH = "0123456789ab" + 52 * "f"


def make(nats: list[float], *, total: int | None = None) -> DocumentScores:
    n = len(nats)
    header = {"run": "tiny", "step": 7, "val_hash": VAL_HASH, "num_documents_total": n if total is None else total}
    return DocumentScores(
        header, np.array(nats), np.arange(1, n + 1), np.arange(n) + 3, tuple(f"part_{i % 2}.txt" for i in range(n))
    )


def test_what_is_written_is_read_back_bit_by_bit_and_not_finite_is_null(tmp_path: Path) -> None:
    scores = make([0.1 + 0.2, 1e-300, math.nan, math.inf])
    path = write_document_scores(scores_path(tmp_path, step=7, val_hash=VAL_HASH), scores)
    assert path == tmp_path / "scores" / "step_00000007-0123456789ab.jsonl"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["schema"], lines[0]["num_documents"]) == ("document_scores", 1, 4)
    assert lines[1] == {"nats": 0.1 + 0.2, "num_bytes": 1, "num_tokens": 3, "slice": "part_0.txt"}
    assert lines[3]["nats"] is None
    found = read_document_scores(path)
    assert found.nats[:2].tolist() == [0.1 + 0.2, 1e-300]
    assert np.isnan(found.nats[2:]).all()
    assert (found.num_bytes.tolist(), found.num_tokens.tolist()) == ([1, 2, 3, 4], [3, 4, 5, 6])
    assert (found.num_bytes.dtype, found.nats.dtype) == (np.int64, np.float64)
    assert found.slices == ("part_0.txt", "part_1.txt", "part_0.txt", "part_1.txt")
    assert found.header["run"] == "tiny"
    assert found.is_whole


def test_scores_of_the_first_documents_only_say_so() -> None:
    assert not make([1.0, 2.0], total=3).is_whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-30],
        lambda text: text.rsplit("\n", 2)[0] + "\n",
        lambda text: text.replace('"document_scores"', '"other"'),
        lambda text: text.replace('"num_bytes"', '"bytes"'),
        lambda text: "[]\n",
        lambda text: "",
    ],
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path, damage) -> None:
    path = write_document_scores(tmp_path / "a.jsonl", make([1.0, 2.0]))
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=r"a\.jsonl"):
        read_document_scores(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_document_scores(tmp_path / "none.jsonl")


def test_the_newest_step_is_found_last_and_other_files_are_not(tmp_path: Path) -> None:
    assert find_document_scores(tmp_path) == []
    for step in (900, 12345678, 5):
        write_document_scores(scores_path(tmp_path, step=step, val_hash=VAL_HASH), make([1.0]))
    (tmp_path / "scores" / ".step_00000009-0123456789ab.jsonl.77").write_text("")
    assert [path.name[:13] for path in find_document_scores(tmp_path)] == [
        "step_00000005", "step_00000900", "step_12345678",
    ]  # fmt: skip


def test_bits_per_byte_is_a_ratio_of_sums_with_the_ratio_estimators_error() -> None:
    # (19 bits, 13 bytes) and (3 bits, 4 bytes): R = 22/17; n/(n-1) = 2.
    bpb, stderr = bits_per_byte(np.array([19, 3]) * math.log(2), np.array([13, 4]))
    assert bpb == pytest.approx(22 / 17)
    assert stderr == pytest.approx(math.sqrt(2 * ((19 - 22 / 17 * 13) ** 2 + (3 - 22 / 17 * 4) ** 2)) / 17)
    assert bits_per_byte(np.array([1.0]), np.array([2]))[1] is None
    assert math.isnan(bits_per_byte(np.array([]), np.array([]))[0])


def test_the_error_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    num_bytes = rng.integers(10, 1000, 400)
    nats = num_bytes * rng.normal(0.7, 0.1, 400)
    picks = rng.integers(0, 400, (4000, 400))
    resampled = nats[picks].sum(1) / num_bytes[picks].sum(1) / math.log(2)
    # 4,000 resamples know a standard deviation to about 1 %.
    assert bits_per_byte(nats, num_bytes)[1] == pytest.approx(resampled.std(), rel=0.06)


def test_documents_know_their_shard_and_empty_ones_are_left_out() -> None:
    documents = [Document(np.array([1]), source="wiki/a.txt:3"), Document(np.array([], int)), Document(np.array([2]))]
    assert slices_of(documents) == ("wiki/a.txt", "")
