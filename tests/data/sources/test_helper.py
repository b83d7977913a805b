"""Jobs to another process and back: in order, and as far as it came."""

from __future__ import annotations

import sys

import pytest

from firstlight.data.sources.helper import Helper


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A program that doubles numbers, and ends at the first that is below 0."""
    (tmp_path / "doubling.py").write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    number = json.loads(line)\n"
        "    if number < 0: sys.exit('no')\n"
        "    print(json.dumps({'twice': 2 * number}), flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "doubling"


def test_results_are_in_the_order_of_the_jobs(module):
    assert Helper(module, range(5), lambda answer: answer["twice"]).results() == [0, 2, 4, 6, 8]


def test_a_process_that_ends_early_gives_what_it_had(module):
    assert Helper(module, [1, 2, -1, 4], lambda answer: answer["twice"]).results() == [2, 4]


def test_a_process_that_does_not_start_gives_nothing(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert Helper("doubling", [1], lambda answer: answer).results() == []
