"""Claims of recipes/explain/sections_data.py."""

from __future__ import annotations

import re

from firstlight.recipes.explain.sections_data import batch_section, packed_table, pieces_strip, text_section


def test_the_text_is_shown_as_bytes_and_pieces(facts_of_run) -> None:
    facts = facts_of_run("classic")
    section = text_section(facts)
    raw = facts.text.encode()
    assert f"{len(facts.text):,} characters and {len(raw):,} bytes" in section
    assert f"{len(facts.pieces):,} ids" in section
    assert re.findall(r"</b><small>([0-9A-F]{2})</small>", section) == [f"{byte:02X}" for byte in raw[:28]]
    strip = pieces_strip(facts.pieces)
    assert [int(id) for id in re.findall(r"<small>(\d+)</small>", strip)] == [piece.id for piece in facts.pieces]


def test_targets_are_the_inputs_moved_by_one(facts_of_run) -> None:
    facts = facts_of_run("classic")
    section = batch_section(facts)
    inputs, targets = re.findall(r'<th scope="row">(?:inputs|targets)</th>(.*?)</tr>', section)
    first = [int(id) for id in re.findall(r"<small>(\d+)</small>", inputs)]
    second = [int(id) for id in re.findall(r"<small>(\d+)</small>", targets)]
    assert first == [facts.bos.id, *[piece.id for piece in facts.pieces[:7]]]
    assert first[1:] == second[:-1]
    assert "B = 6 and T = 64" in section
    assert "384 exercises" in section


def test_packed_rows_are_shown_whole(facts_of_run) -> None:
    batch = facts_of_run("classic").batch
    rows = re.findall(r'<tr><th scope="row">row \d+</th>(.*?)</tr>', packed_table(batch))
    assert [[int(id) for id in re.findall(r"<small>(\d+)</small>", row)] for row in rows] == [
        [id for id in row if id >= 0] for row in batch.rows
    ]
    assert packed_table(batch).count('class="empty"') == sum(id < 0 for row in batch.rows for id in row)


def test_text_cannot_become_markup(facts_of_run) -> None:
    facts = facts_of_run("classic", text="<script>alert(1)</script> \"'& <img src=x onerror=y>. Two.")
    for section in (text_section(facts), batch_section(facts)):
        assert "<script" not in section
        assert "<img" not in section
