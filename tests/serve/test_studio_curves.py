"""Rows of a run from a place on: torn ends, rewinds, damaged lines, and bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serve.studio_run import lines_of, train_row

from firstlight.serve import studio_curves
from firstlight.serve.studio_curves import columns, is_number, parse_row, read_curves, shape_rows


def read(path: Path, before: dict | None = None, *, max_points: int = 1000) -> dict:
    start, tag = (before["next"], before["tag"]) if before else (0, "")
    return read_curves(path, start=start, tag=tag, max_points=max_points)


def test_a_file_that_grows_is_read_on_and_a_torn_end_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = read(path)
    assert (first["next"], first["train"], first["has_more"]) == (0, {"num_rows": []}, False)
    whole, torn = lines_of(train_row(0)), lines_of(train_row(1))
    path.write_bytes(whole + torn[:20])
    second = read(path, first)
    assert second["train"]["step"] == [0]
    assert second["next"] == len(whole)
    assert not second["is_reset"]
    assert read(path, second)["train"] == {"num_rows": []}
    with open(path, "ab") as out:
        out.write(torn[20:] + lines_of({"kind": "eval", "step": 2, "val_bpb": 1.5}))
    third = read(path, second)
    assert third["train"]["step"] == [1]
    assert third["train"]["loss_nats"] == [3.99]
    assert third["rows"] == [{"kind": "eval", "step": 2, "val_bpb": 1.5}]
    assert third["next"] == path.stat().st_size


def test_a_rewound_file_is_read_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines_of(*(train_row(i) for i in range(6))))
    first = read(path)
    path.write_bytes(lines_of(*(train_row(i) for i in range(3))))
    shorter = read(path, first)
    assert (shorter["is_reset"], shorter["train"]["step"]) == (True, [0, 1, 2])
    # The same when by the next look the file is as long as before, or longer: the bytes before the place are others.
    path.write_bytes(lines_of(*(train_row(i) for i in range(3)), *(train_row(i, loss_nats=9.0) for i in range(3, 9))))
    longer = read(path, first)
    assert (longer["is_reset"], longer["train"]["step"]) == (True, list(range(9)))
    path.unlink()
    assert read(path, longer)["is_reset"]


def test_damaged_lines_are_counted_and_nothing_from_them_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = (
        b'{"kind": "train", "step"\n[1]\n\x00\x00\n{"kind": 3}\n{"kind":"train","step":1,"x":NaN}\n'
        + b"[" * 9000
        + b"\n"
    )
    path.write_bytes(
        lines_of(train_row(0)) + damaged + b"\n" + lines_of(train_row(1, loss_nats=None, nonfinite=["loss_nats"]))
    )
    found = read(path)
    assert found["num_damaged"] == 6
    assert found["train"]["step"] == [0, 1]
    assert found["train"]["loss_nats"] == [4.0, None]


def test_many_rows_become_means_with_their_extremes() -> None:
    rows = [train_row(i, loss_nats=float(v)) for i, v in enumerate([1, 3, 5, 100, 7, 8, 2])]
    found = columns(rows, max_points=3)
    # Seven rows on at most three points: stretches of three.
    assert found["num_rows"] == [3, 3, 1]
    assert found["step"] == [2, 5, 6]
    assert found["loss_nats"] == [3, 115 / 3, 2]
    assert found["loss_nats_low"] == [1, 7, 2]
    assert found["loss_nats_high"] == [5, 100, 2]
    assert found["tokens_seen"] == [1920 * 2, 1920 * 5, 1920 * 7]
    few = columns(rows, max_points=7)
    assert few["loss_nats"] == [1, 3, 5, 100, 7, 8, 2]
    assert "loss_nats_low" not in few


def test_an_answer_is_bounded_and_the_rest_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [train_row(i) for i in range(200)]
    path.write_bytes(lines_of(*rows))
    monkeypatch.setattr(studio_curves, "MOST_BYTES", 5000)
    steps, num_asked, before = [], 0, None
    while before is None or before["has_more"]:
        before = read(path, before)
        steps += before["train"]["step"]
        num_asked += 1
    assert steps == list(range(200))
    assert num_asked == pytest.approx(path.stat().st_size / 5000, abs=2)
    # A line that is longer than an answer may read cannot stop it for ever.
    path.write_bytes(b"x" * 12_000 + b"\n" + lines_of(train_row(0)))
    before, damaged, steps = None, 0, []
    while before is None or before["has_more"]:
        before = read(path, before)
        damaged += before["num_damaged"]
        steps += before["train"].get("step", [])
    assert (damaged, steps) == (3, [0])


def test_a_long_file_has_few_points_however_many_answers_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines_of(*(train_row(i) for i in range(2000))))
    monkeypatch.setattr(studio_curves, "MOST_BYTES", 50_000)
    before, num_rows, last = None, [], []
    while before is None or before["has_more"]:
        before = read(path, before, max_points=100)
        num_rows += before["train"]["num_rows"]
        last += before["train"]["step"]
    assert sum(num_rows) == 2000
    assert 100 - 10 <= len(num_rows) <= 100 + 10
    assert last == [sum(num_rows[: i + 1]) - 1 for i in range(len(num_rows))]
    with open(path, "ab") as out:
        out.write(lines_of(train_row(2000), train_row(2001)))
    assert read(path, before, max_points=100)["train"]["num_rows"] == [2]


def test_other_rows_are_bounded_too_and_left_out_ones_counted() -> None:
    rows = [{"kind": "eval", "step": i, "val_bpb": 1.0} for i in range(studio_curves.MOST_ROWS + 7)]
    samples = [
        {"kind": "sample", "step": i, "samples": [{"prompt": "p", "completion": "<b>" * 3000}]} for i in range(8)
    ]
    found = shape_rows(lines_of(*rows, *samples), max_points=10)
    assert [row["step"] for row in found["rows"]] == list(range(7, 7 + studio_curves.MOST_ROWS))
    assert [row["step"] for row in found["samples"]] == list(range(2, 8))
    assert found["num_left_out"] == 7 + 2
    assert found["samples"][0]["samples"] == [{"prompt": "p", "completion": ("<b>" * 3000)[:2000]}]
    assert len(json.dumps(found)) < 100_000


def test_rows_of_reinforcement_learning_are_curves_of_their_own() -> None:
    rows = []
    for step in range(3):
        rows += [
            {"kind": "rl", "step": step, "reward_mean": step / 4, "kl_nats": None, "pass_at_k": {"1": 0.5}},
            train_row(step),
        ]
    rows.append({"kind": "reward", "step": 3, "reward_mean": 0.9})
    found = shape_rows(lines_of(*rows), max_points=10)
    assert found["rl"] == {"num_rows": [1, 1, 1], "step": [0, 1, 2], "reward_mean": [0, 0.25, 0.5]}
    assert found["train"]["loss_nats"] == [4.0, 3.99, 3.98]
    assert found["rows"] == [{"kind": "reward", "step": 3, "reward_mean": 0.9}]


def test_large_values_in_other_rows_stay_behind() -> None:
    row = {
        "kind": "core",
        "step": 1,
        "core": 0.1,
        "tasks": {"a": 1},
        "words": "x" * 5000,
        "note": "short",
        "is_cut": False,
    }
    assert shape_rows(lines_of(row), max_points=10)["rows"] == [
        {"kind": "core", "step": 1, "core": 0.1, "note": "short", "is_cut": False}
    ]


def test_what_is_no_sample_or_number_is_no_trouble() -> None:
    odd = [{"kind": "sample", "step": "x", "samples": 3}, {"kind": "sample", "samples": [1, {"prompt": 7}]}]
    found = shape_rows(lines_of(*odd, train_row(0, loss_nats="low", huge=10**400)), max_points=10)
    assert found["samples"] == [
        {"step": None, "samples": []},
        {"step": None, "samples": [{"prompt": "7", "completion": ""}]},
    ]
    assert "loss_nats" not in found["train"]
    assert "huge" not in found["train"]
    assert [is_number(v) for v in (1, 1.5, True, None, "1", float("inf"), 1e308)] == [True, True] + [False] * 5
    assert parse_row(b'{"kind": "train", "loss_nats": 1e999}') is not None
