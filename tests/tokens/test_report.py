"""The compression report: bytes per token by hand, and references that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from firstlight.tokens import report
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.report import compression_report, reference_token_counts
from firstlight.tokens.samples import SAMPLES

# é is two bytes and one token here; everything else is one byte, one token.
TOKENIZER = Tokenizer([*(bytes([b]) for b in range(256)), "é".encode()])


def test_rows_and_total_equal_a_count_by_hand() -> None:
    made = compression_report(TOKENIZER, {"plain": "abcd", "accents": "éé", "emoji": "🙂", "empty": ""})
    assert [(row.kind, row.num_chars, row.num_bytes, row.num_tokens, row.bytes_per_token) for row in made.rows] == [
        ("plain", 4, 4, 4, 1.0),
        ("accents", 2, 4, 2, 2.0),
        ("emoji", 1, 4, 4, 1.0),
        ("empty", 0, 0, 0, 0.0),
    ]
    total = made.total
    assert (total.kind, total.num_chars, total.num_bytes, total.num_tokens, total.bytes_per_token) == (
        "all",
        7,
        12,
        10,
        1.2,
    )
    assert made.not_available == {}


def test_without_compare_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert [row.kind for row in compression_report(TOKENIZER).rows] == list(SAMPLES)


def test_rows_as_dicts_are_strict_json() -> None:
    made = compression_report(TOKENIZER, {"plain": "abcd", "empty": ""})
    dicts = json.loads(json.dumps([row.to_dict() for row in made.rows], allow_nan=False))
    assert dicts[0] == {
        "kind": "plain",
        "num_chars": 4,
        "num_bytes": 4,
        "num_tokens": 4,
        "reference_tokens": {},
        "bytes_per_token": 1.0,
        "reference_bytes_per_token": {},
    }


def test_references_that_are_there_get_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"gpt2": [2, 3], "cl100k_base": [1, 2]}
    monkeypatch.setattr(report, "reference_token_counts", lambda name, texts, timeout_s: counts[name])
    made = compression_report(TOKENIZER, {"a": "abcd", "b": "éé"}, compare=True)
    assert [row.reference_tokens for row in made.rows] == [{"GPT-2": 2, "GPT-4": 1}, {"GPT-2": 3, "GPT-4": 2}]
    assert made.total.reference_tokens == {"GPT-2": 5, "GPT-4": 3}
    assert made.rows[0].to_dict()["reference_bytes_per_token"] == {"GPT-2": 2.0, "GPT-4": 4.0}


def test_reference_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_COUNT_SCRIPT", "import time; time.sleep(60)")
    start_s = time.monotonic()
    made = compression_report(TOKENIZER, {"a": "abcd"}, compare=True, timeout_s=0.3)
    assert time.monotonic() - start_s < 20
    assert made.not_available == dict.fromkeys(("GPT-2", "GPT-4"), "not available offline: no answer within 0.3 s")
    assert made.total.reference_tokens == {}


def test_reference_that_fails_is_named_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_COUNT_SCRIPT", "raise ConnectionError('no route to anywhere')")
    made = compression_report(TOKENIZER, {"a": "abcd"}, compare=True)
    assert made.not_available["GPT-2"] == ("not available offline: tiktoken has no gpt2 in its cache (ConnectionError)")


def test_counts_come_from_the_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # tiktoken with an encoding that needs no download, in place of GPT-2's.
    script = report._COUNT_SCRIPT.replace(
        'tiktoken.get_encoding(request["name"])',
        "tiktoken.Encoding('b', pat_str='.', mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={})",
    )
    assert script != report._COUNT_SCRIPT
    monkeypatch.setattr(report, "_COUNT_SCRIPT", script)
    assert reference_token_counts("gpt2", ["abc", "é🙂", ""], timeout_s=60) == [3, 6, 0]
    assert sys.executable
