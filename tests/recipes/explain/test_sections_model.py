"""Claims of recipes/explain/sections_model.py: tables say what the facts say, all of them."""

from __future__ import annotations

import re

import pytest

from firstlight.recipes.explain.facts import Head
from firstlight.recipes.explain.sections_model import (
    attention_section,
    formula_of,
    gates_card,
    map_figure,
    model_section,
    pass_section,
    stream_section,
    strongest_links,
    weights_section,
)
from firstlight.runtime.console import format_bytes, format_count

PRESETS = ("classic", "modern", "portable")


@pytest.mark.parametrize("preset", PRESETS)
def test_formulas_of_the_groups_come_to_their_numbers(facts_of_run, preset: str) -> None:
    facts = facts_of_run(preset)
    for name, number in facts.groups.items():
        formula = formula_of(facts, name)
        if "=" in formula:
            text = formula.split("=")[1].replace("×", "*").replace("²", "**2").replace(",", "")
            assert re.fullmatch(r"[\d ()+*]+", text)
            total = sum(product(part) for part in flat(text))
            assert total == number, name


def flat(text: str) -> list[str]:
    """``a * (b + c)`` as ``a * b`` and ``a * c``."""
    match = re.fullmatch(r"\s*(\d+) \* \((.*)\)\s*", text)
    if not match:
        return [text]
    return [f"{match[1]} * {part}" for part in match[2].split("+")]


def product(text: str) -> int:
    result = 1
    for factor in text.split(" * "):
        base, _, power = factor.strip().partition("**")
        result *= int(base) ** int(power or 1)
    return result


@pytest.mark.parametrize("preset", PRESETS)
def test_every_weight_and_every_tensor_is_in_the_page(facts_of_run, preset: str) -> None:
    facts = facts_of_run(preset)
    weights = weights_section(facts.weights)
    for weight in facts.weights:
        assert weights.count(f"<code>{weight.name}</code>") == 1
        assert f"<td>{weight.num_params:,}</td>" in weights
    section = pass_section(facts)
    rows = re.findall(r"<tbody>(.*?)</tbody>", section)
    assert sum(body.count("<tr>") for body in rows) == len(facts.walk.stages)
    big = {stage.key: stage for stage in facts.training.stages}
    for stage in facts.walk.stages:
        assert f"({', '.join(f'{n:,}' for n in stage.shape)})" in section
        assert format_bytes(stage.num_bytes) in section
        assert format_bytes(big[stage.key].num_bytes) in section
    assert format_count(sum(stage.flops for stage in facts.walk.stages)) in section
    assert "B = 6 rows of T = 64" in section


def test_sizes_by_letter(facts_of_run) -> None:
    section = model_section(facts_of_run("portable"))
    for letter, value in (("D", 64), ("L", 3), ("H", 4), ("G", 2), ("K", 16), ("F", 192)):
        assert re.search(rf"<b>{letter}</b>[^<]*</th><td>{value}</td>", section)
    assert "SwiGLU" in section


def test_the_stream_is_shown_after_each_half_of_each_layer(facts_of_run) -> None:
    facts = facts_of_run("modern")
    section = stream_section(facts.walk)
    stats = {stage.key: stage.stats for stage in facts.walk.stages}
    for i in range(3):
        for key in (f"h.{i}.mid", f"h.{i}.out"):
            assert f"<em>{stats[key].rms:.3g}</em>" in section
        assert f"<em>{100 * stats[f'h.{i}.act'].zero_frac:.1f} %</em>" in section
    assert section.count('class="meter"') == 1 + 2 * 3 + 3


def test_there_is_a_map_for_every_head(facts_of_run) -> None:
    facts = facts_of_run("modern")
    section = attention_section(facts, facts.walk)
    assert section.count('src="data:image/png;base64,') == 12
    for head in facts.walk.heads:
        assert f"layer {head.layer} · head {head.head}</b><span>{head.entropy_bits:.2f} bits" in section
    assert section.count('class="gate"') == len(facts.walk.gates) == 2 * 2
    assert gates_card((), []) == ""


def test_strongest_links_leave_out_the_first_token_and_rows_without_a_choice() -> None:
    head = Head(0, 0, ((1.0,), (0.1, 0.9), (0.5, 0.2, 0.3), (0.1, 0.6, 0.1, 0.2)), 0, 0, 0, 0, 0)
    assert strongest_links(head, most=3) == [(0.6, 3, 1), (0.3, 2, 2), (0.2, 2, 1)]
    assert "layer 0 · head 0" in map_figure(head)
