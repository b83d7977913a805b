"""What the page of a later stage shows, and that nothing which a model said becomes markup."""

from __future__ import annotations

from firstlight.recipes.record import new_record
from firstlight.recipes.report import render_page, shown_text
from firstlight.recipes.report_chat import answers, chat_table, reward_card, reward_charts

TEXT = {
    "prompt": "What is 1 < 2?", "parts": [["text", "<b>bold</b>"], ["python", "1<2"], ["output", "True"]], "reward": 1.0,
    "advantage": None,
}  # fmt: skip
ROWS = [
    {"kind": "rl", "step": step, "reward_mean": 0.1 * step, "entropy_nats": 1.0, "length_mean": 9.0, "texts": [TEXT]}
    for step in range(5)
] + [{"kind": "reward", "step": step, "reward_mean": 0.2, "reward_stderr": 0.01} for step in (0, 5)]
FINAL = {
    "reward_mean": 0.6,
    "reward_stderr": 0.02,
    "reward_before": 0.25,
    "reward_difference": 0.35,
    "reward_difference_stderr": 0.03,
}


def points(rows):
    return lambda key, kind: [(row["step"], row[key]) for row in rows if row["kind"] == kind and key in row]


def test_rewards_have_their_curves_with_errors_and_other_stages_none():
    each, held_out, entropy, length = reward_charts(points(ROWS))
    assert each.series[0].points == [(step, 0.1 * step) for step in range(5)]
    assert held_out.series[0].points == [(0, 0.2), (5, 0.2)]
    assert held_out.series[0].errors == [0.01, 0.01]
    assert len(entropy.series[0].points) == len(length.series[0].points) == 5
    assert not any(series.points for chart in reward_charts(points([])) for series in chart.series)


def test_the_card_tells_the_reward_and_its_difference():
    card = reward_card(new_record("r", recipe="rl", final=FINAL))
    assert "0.600" in card
    assert "Before: 0.250" in card
    assert "+0.350 ± 0.030" in card
    assert reward_card(new_record("b", final={"val_bpb": 1.0})) is None


def test_tasks_are_a_table():
    task = {
        "task": "builtin-chat",
        "num_items": 200,
        "accuracy": 0.5,
        "stderr": 0.035,
        "chance": 0.05,
        "format_rate": 0.9,
        "ended_rate": None,
    }
    table = chat_table(new_record("s", final={"chat": {"tasks": [task]}}), shown_text)
    assert "50.0 % ± 3.5 %" in table
    assert "90.0 %" in table
    assert "–" in table
    assert chat_table(new_record("s"), shown_text) == ""


def test_what_a_model_said_is_text_and_nothing_else():
    shown = answers(ROWS, shown_text)
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "<b>bold" not in shown
    assert "[1&lt;2]" in shown
    assert "advantage none" in shown
    page = render_page(new_record("r", recipe="rl", final=FINAL), ROWS)
    assert "<b>bold" not in page
    assert "What it answered at step 4" in page
