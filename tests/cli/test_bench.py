"""`firstlight bench`: tables for people, one JSON object for programs, the machine's peaks beside both."""

from __future__ import annotations

import json

import pytest

from firstlight.cli import main

TINY = ["--depth", "1", "--vocab-size", "96", "--max-seq-len", "32", "--device-batch-size", "2", "--rounds", "1"]
TINY += ["--compile", "off", "--device", "cpu", "--dtype", "fp32", "--threads", "1"]


def test_step_shows_what_was_asked_for(capsys):
    assert main.run(["bench", "step", "--steps", "1", *TINY]) == 0
    shown = capsys.readouterr().out
    for what in (
        "tokens/s",
        "mfu",
        "gemm_fraction",
        "peak memory",
        "optimizer",
        "ids are random",
        "peaks of this machine",
    ):
        assert what in shown


def test_json_is_one_object(capsys):
    assert main.run(["bench", "step", "--steps", "1", "--json", *TINY]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {"tokens_per_s", "step_ms", "mfu", "gemm_fraction", "gemm_peak_flops", "peak_rss_bytes"}
    assert wanted <= set(found)
    assert found["peaks"]["gemm_peak_flops"] > 0
    assert found["machine"]["num_threads"] == 1


@pytest.mark.parametrize("name", ["loss", "optim", "decode", "eval"])
def test_each_part_by_itself(name, capsys):
    assert main.run(["bench", name, "--json", *TINY]) == 0
    assert json.loads(capsys.readouterr().out)["benchmark"] == name


def test_a_shape_that_cannot_be_is_refused(capsys):
    assert main.run(["bench", "step", *TINY, "--total-batch-size", "100"]) == 2
    assert "--total-batch-size 100" in capsys.readouterr().err
