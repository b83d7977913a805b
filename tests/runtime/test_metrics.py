"""metrics.jsonl: strict, append-only, survives crashes, and can be wound back to a checkpoint."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from firstlight.errors import DataError
from firstlight.runtime.metrics import MetricsLog, read_metrics, strict_json


def strict_rows(path):
    """Read as another program would: any NaN or Infinity in the file is an error."""

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.write("train", 0, {"loss_nats": 9.5})
    (row,) = strict_rows(log.path)
    assert (row["kind"], row["step"], row["loss_nats"]) == ("train", 0, 9.5)
    assert row["time_unix_s"] > 1.6e9


def test_numbers_that_json_lacks_become_null_and_are_named(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write("eval", 5, {"val_bpb": float("inf"), "parts": {"a": [1.0, float("nan")]}, "num_bytes": 3})
    (row,) = strict_rows(log.path)
    assert row["val_bpb"] is None
    assert row["parts"] == {"a": [1.0, None]}
    assert row["nonfinite"] == ["val_bpb", "parts.a[1]"]
    assert row["num_bytes"] == 3


def test_scalars_of_numpy_and_torch_are_written_as_numbers(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    values = {
        "a": np.float32(0.5),
        "b": np.int64(7),
        "c": torch.tensor(2.5),
        "d": torch.tensor(float("nan")),
        "e": True,
    }
    log.write("train", 1, values)
    (row,) = strict_rows(log.path)
    assert (row["a"], row["b"], row["c"], row["d"], row["e"]) == (0.5, 7, 2.5, None, True)
    assert row["nonfinite"] == ["d"]


def test_text_of_every_kind_survives(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    text = "line\nbreak \u2028 \U0001f98a \x00 <|bos|>"
    log.write("sample", 3, {"prompt": "p", "completion": text})
    (row,) = read_metrics(log.path)
    assert row["completion"] == text


def test_a_lone_surrogate_does_not_end_the_run(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write("sample", 3, {"completion": "a\ud800b"})
    (row,) = strict_rows(log.path)
    assert row["completion"] == "a?b"


@pytest.mark.parametrize("torn", [b'{"kind": "train", "st', b"\x00" * 40, b"\x00" * 40 + b"\n", b'{"kind"\n{"ste'])
def test_a_torn_end_is_cut_off_on_opening(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    whole = b'{"kind": "train", "step": 0}\n{"kind": "train", "step": 1}\n'
    path.write_bytes(whole + torn)
    log = MetricsLog(path)
    assert log.cut_bytes == len(torn)
    log.write("train", 2, {})
    assert [row["step"] for row in strict_rows(path)] == [0, 1, 2]


def test_a_file_with_nothing_whole_in_it_starts_anew(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"kin')
    MetricsLog(path).write("train", 0, {})
    assert [row["step"] for row in strict_rows(path)] == [0]


def test_rewind_removes_rows_from_the_step_on_and_keeps_the_rest(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write("run", 0, {"what": "started"})
    log.write("event", None, {"what": "before the first step"})
    for step in range(6):
        log.write("train", step, {"loss_nats": float(step)})
    log.write("eval", 3, {"val_bpb": 2.0})
    log.write("eval", 6, {"val_bpb": 1.0})
    log.write("run", 6, {"what": "stopped"})

    # Steps 4 and 5; the score of step 6 goes with them.
    assert log.rewind(4) == 2
    log.write("train", 4, {"loss_nats": 4.0})
    kept = [(row["kind"], row["step"]) for row in strict_rows(log.path)]
    assert kept == [
        ("run", 0),
        ("event", None),
        ("train", 0),
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
        ("run", 6),
        ("train", 4),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_an_interrupted_rewind_leaves_the_old_file(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in range(3):
        log.write("train", step, {})
    before = log.path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        log.rewind(1)
    assert log.path.read_bytes() == before


def test_a_full_disk_loses_the_row_not_the_run_and_is_told_once(tmp_path):
    told = []
    log = MetricsLog(tmp_path / "m.jsonl", warn=told.append)
    log.write("train", 0, {})

    class HalfFull:
        """Takes five bytes of a line, then reports a full disk."""

        def __init__(self, file):
            self.file, self.full = file, False

        def write(self, data):
            if self.full:
                raise OSError(28, "No space left on device")
            self.full = True
            return self.file.write(data[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = log._file
    log._file = HalfFull(real)
    log.write("train", 1, {})
    log.write("train", 2, {})
    log._file = real
    log.write("train", 3, {})
    assert [row["step"] for row in strict_rows(log.path)] == [0, 3]
    assert log.lost_rows == 2
    assert len(told) == 1
    assert "No space left" in told[0]


def test_reading_while_a_line_is_being_written_leaves_it_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1')
    assert read_metrics(path) == [{"step": 0}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"ste\n[1]\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:2"):
        read_metrics(path)
    damaged = []
    assert read_metrics(path, damaged=damaged) == [{"step": 0}, {"step": 2}]
    assert [text.split(":")[-1][:1] for text in damaged] == ["2", "3"]


def test_our_own_mistakes_are_errors(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="kind"):
        log.write("training", 0, {})
    with pytest.raises(ValueError, match="step"):
        log.write("train", 0, {"step": 3})
    with pytest.raises(TypeError, match="model"):
        strict_json({"model": object()})
