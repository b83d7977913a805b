"""Claims of recipes/explain/text.py."""

from __future__ import annotations

import pytest

from firstlight.recipes.explain.collect import explain_depth
from firstlight.recipes.explain.text import render_text, spark
from firstlight.runtime.context import open_runtime


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
def test_all_stages_are_told_with_the_facts_numbers(facts_of_run, preset: str) -> None:
    facts = facts_of_run(preset)
    text = render_text(facts)
    score = facts.walk.score
    for word in ("TEXT TO IDS", "BATCH", "MODEL", "FORWARD PASS", "ATTENTION", "GUESSES", "SCORE", "TRAINING STEP", "MEMORY", "WORK"):  # fmt: skip
        assert word in text
    assert f"right: bits per byte = {score.nats:.3f} / (ln 2 x {score.num_bytes:,}) = {score.bits_per_byte:.4f}" in text
    assert f"{score.seed_bpb:.4f}, which is bits per token" in text
    assert "6 rows x 64 tokens x 5 micro-batches x 1 process = 1,920 tokens" in text
    assert f"{facts.training.flops_per_token:,} FLOPs a token" in text
    for name, number in facts.groups.items():
        assert any(line.split()[:2] == [name, f"{number:,}"] for line in text.splitlines())
    for weight in facts.weights[:1]:
        assert weight.group in text
    assert len(text.splitlines()) < 150


def test_no_byte_of_the_text_can_command_a_terminal(facts_of_run) -> None:
    facts = facts_of_run("classic", text="a\x1b[31mred\x07\u202e. Two.")
    assert not any(ord(c) < 32 and c != "\n" for c in render_text(facts))
    coloured = render_text(facts, colours=True)
    assert "\x1b[31m" not in coloured
    assert "\x1b[0m" in coloured


def test_a_large_depth_is_told_without_a_model() -> None:
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        text = render_text(explain_depth(20, runtime))
    assert "No model was built" in text
    assert "GUESSES" not in text
    assert "one micro-batch of training" in text


def test_a_curve_in_a_row_of_characters() -> None:
    assert spark([1.0, 1.0], width=2) == "██"
    assert spark([0.0, 0.25, 0.5, 0.75, 1.0], width=5) == "▁▃▅▆█"
