"""Claims of recipes/explain/sections_score.py."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from firstlight.recipes.explain.sections_score import bpb_section, logits_section, loss_section


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
def test_every_position_has_its_line(facts_of_run, preset: str) -> None:
    facts = facts_of_run(preset)
    section = loss_section(facts.walk, facts.model.vocab_size)
    body = re.search(r"<tbody>(.*)</tbody>", section)
    assert body is not None
    lines = body[1].split("</tr>")[:-1]
    assert len(lines) == len(facts.walk.positions)
    for line, position in zip(lines, facts.walk.positions, strict=True):
        for text in (f"{position.probability:.4f}", f"<td>{position.rank:,}</td>", f"{position.loss_nats:.3f}"):
            assert text in line
        assert line.count("class='guess") == 5
        assert ("hit" in line) == (position.rank <= 5)
    assert f"{math.log(facts.model.vocab_size):.2f} nats" in section
    assert "soft cap" in logits_section(facts, facts.walk) if preset != "portable" else True
    assert ("no cap" in logits_section(facts, facts.walk)) == (preset == "portable")


def test_the_right_and_the_wrong_score_stand_side_by_side(facts_of_run) -> None:
    facts = facts_of_run("classic")
    score = facts.walk.score
    section = bpb_section(facts, facts.walk)
    assert re.findall(r"class='result'>([\d.]+)<", section) == [f"{score.seed_bpb:.4f}", f"{score.bits_per_byte:.4f}"]
    assert f"{score.nats:.4f} nats / (ln 2 × {score.num_bytes:,} bytes)" in section
    assert "this checkpoint has" not in section
    assert "<b>1.2340</b>" in bpb_section(replace(facts, val_bpb=1.234, val_of="all validation documents"), facts.walk)
