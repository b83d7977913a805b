"""What a report shows of the stages after the base run: rewards, scores on chat tasks, and answers with their rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from firstlight.recipes.record import RunRecord
from firstlight.recipes.report_svg import Chart, Series, smooth

Row = Mapping[str, Any]
Points = list[tuple[float, float]]
Find = Callable[[str, str], Points]
"""(key, kind) -> (step, value) of all rows of that kind."""

Escape = Callable[[object], str]
NUM_ANSWERS = 6


def reward_charts(find: Find) -> list[Chart]:
    """Curves of RL: the reward of each step and of held-out problems, and how much is still tried. Empty without any."""
    each, held_out = find("reward_mean", "rl"), find("reward_mean", "reward")
    errors = dict(find("reward_stderr", "reward"))
    values = [y for _, y in (*each, *held_out)]
    top = max(values, default=0.0) or 1.0
    return [
        Chart(
            "Reward", "mean over a step's answers", [Series("each step", each, "faint"), Series("smoothed", smooth(each))],
            hue="green", y_range=(min([0.0, *values]), 1.15 * top),
        ),
        Chart(
            "Reward on held-out problems", "mean, ± 1 standard error",
            [Series("", held_out, "dots", [errors.get(x, 0.0) for x, _ in held_out] if errors else [])], hue="amber",
        ),
        Chart("Entropy", "nats a choice: near 0 nothing else is tried", [Series("", find("entropy_nats", "rl"))], hue="violet"),
        Chart("Length", "ids of an answer, mean", [Series("", find("length_mean", "rl"))], hue="teal"),
    ]  # fmt: skip


def reward_card(record: RunRecord) -> str | None:
    """The score card of RL; None for other stages."""
    final = record.final
    if "reward_mean" not in final:
        return None
    value, error = final["reward_mean"], final.get("reward_stderr")
    shown = f"{value:.3f}" + (f" <small>± {error:.3f}</small>" if error is not None else "")
    before = final.get("reward_before")
    words = "The mean reward of answers to problems that were never trained on."
    if before is not None:
        words += f" Before: {before:.3f}; the difference is {final['reward_difference']:+.3f} ± {final['reward_difference_stderr']:.3f}."
    return (
        f'<div class="card score"><p class="what">Reward, final</p><div class="value">{shown}</div><p>{words}</p></div>'
    )


def chat_table(record: RunRecord, escape: Escape) -> str:
    """Scores on chat tasks, one a line; empty where none were asked."""
    tasks = record.final.get("chat", {}).get("tasks", [])
    if not tasks:
        return ""
    head = "<tr><th>task</th><th>questions</th><th>accuracy</th><th>guessing</th><th>right form</th><th>ended</th></tr>"
    lines = "".join(
        f"<tr><th scope='row'>{escape(task['task'])}</th><td>{task['num_items']:,}</td>"
        f"<td>{_percent(task['accuracy'])} ± {_percent(task['stderr'])}</td><td>{_percent(task['chance'])}</td>"
        f"<td>{_percent(task['format_rate'])}</td><td>{_percent(task['ended_rate'])}</td></tr>"
        for task in tasks
    )
    return f'<h2>Questions that it had not seen</h2><div class="card scores"><table>{head}{lines}</table></div>'


def answers(rows: Sequence[Row], escape: Escape) -> str:
    """Some answers of the last step of RL, with their rewards; empty without any."""
    steps = [row for row in rows if row.get("kind") == "rl" and row.get("texts")]
    if not steps:
        return ""
    last = steps[-1]
    cards = "".join(
        f'<p class="card sample" dir="auto"><b>{escape(text["prompt"])}</b> '
        + escape("".join(f"[{said}]" if kind != "text" else said for kind, said in text["parts"]))
        + f"<br><small>reward {_number(text['reward'])}, advantage {_number(text['advantage'])}</small></p>"
        for text in last["texts"][:NUM_ANSWERS]
    )
    return (
        f'<h2>What it answered at step {last["step"]:,}</h2><p class="hint">The question is in colour; calls of the tool and '
        f'what it printed are in brackets.</p><div class="samples">{cards}</div>'
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:+.2f}"
