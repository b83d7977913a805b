"""Claims of recipes/explain/sections_training.py."""

from __future__ import annotations

import re
from dataclasses import replace

from firstlight.recipes.explain.sections_training import (
    groups_table,
    memory_section,
    schedule_chart,
    schedule_section,
    step_section,
    work_section,
)
from firstlight.runtime.console import format_bytes, format_count


def test_the_arithmetic_of_a_step_is_written_out(facts_of_run) -> None:
    section = step_section(facts_of_run("modern"))
    assert "6 rows × 64 tokens × 5 micro-batches × 1 process = <b>1,920 tokens</b>" in section
    assert "5 passes one after the other" in section


def test_groups_have_all_parameters_once(facts_of_run) -> None:
    facts = facts_of_run("modern")
    cells = re.findall(r"<td>(AdamW|Muon)</td><td>(\d+)</td><td>([\d,]+)</td>", groups_table(facts.weights))
    assert sum(int(n) for _, n, _ in cells) == len(facts.weights)
    assert sum(int(n.replace(",", "")) for _, _, n in cells) == sum(facts.groups.values())


def test_the_schedule_marks_where_the_checkpoint_stands(facts_of_run) -> None:
    facts = facts_of_run("classic")
    chart = schedule_chart(facts.training)
    mark = next(series for series in chart.series if series.kind == "dots")
    assert mark.points == [(100 * 29 / 40, facts.training.at.lr_multiplier)]
    section = schedule_section(facts)
    assert "step 30" in section
    assert "at 72 %" in section
    assert not any(s.kind == "dots" for s in schedule_chart(replace(facts.training, at=None)).series)


def test_memory_and_work_say_their_totals(facts_of_run) -> None:
    train = facts_of_run("portable").training
    section = memory_section(train)
    assert format_bytes(sum(part.amount for part in train.memory)) in section
    for part in train.memory:
        assert f"<em>{format_bytes(part.amount)}</em>" in section
    assert "in one chunk" in section
    assert "chunks of 128 tokens" in memory_section(replace(train, chunk_tokens=128))
    work = work_section(train)
    assert f"{train.flops_per_token:,}" in work
    assert "tokens a second" not in work
    timed = work_section(replace(train, tokens_per_s=960.0))
    assert "2.0 s for a step" in timed
    assert format_count(train.flops_per_token * 960) in timed
