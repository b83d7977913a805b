"""Compared runs as one self-contained page: verdicts, numbers, what differs, and curves over an axis of your choice.

The choice of the axis is made of radio buttons and style alone, so it works without scripts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from firstlight.recipes.compare import Comparison
from firstlight.recipes.compare_curves import AXES, Points, mean_curve, over
from firstlight.recipes.compare_groups import Group
from firstlight.recipes.compare_words import final_rows, needed_rows
from firstlight.recipes.report import PAGE_POLICY, late_range, shown_date, shown_text, write_page
from firstlight.recipes.report_style import HOVER_JS, LOGO, PAGE_CSS
from firstlight.recipes.report_svg import HUES, Chart, Series, draw_chart

_AXIS_NAMES = {"tokens": "tokens", "steps": "steps", "flops": "FLOPs", "minutes": "minutes", "usd": "money"}

COMPARE_CSS = """
.answers{display:grid;gap:14px;margin:24px 0 20px} .answer{padding:16px 20px}
.answer p{margin:0} .answer .says{font-size:21px;font-weight:650;letter-spacing:-.01em;line-height:1.35}
.answer .small{color:var(--soft);font-size:14.5px;margin-top:6px;overflow-wrap:anywhere}
.answer .tag{font-size:13px;font-weight:600;color:var(--soft);margin-bottom:4px}
.answer.shown{border-left:5px solid var(--good)} .answer.none{border-left:5px solid var(--line)}
.answer.refused{border-left:5px solid var(--bad)}
.wide-table{padding:12px 20px;overflow-x:auto;margin:0 0 20px} .wide-table th,.wide-table td{padding:6px 18px 6px 0;width:auto}
.wide-table td{white-space:nowrap;overflow-wrap:normal} .wide-table td.text{white-space:normal;overflow-wrap:anywhere;min-width:7em}
.wide-table thead th{color:var(--soft);font-weight:600;font-size:13px;border-top:0}
.wide-table thead th{white-space:nowrap;overflow-wrap:normal} .wide-table tbody th{min-width:8.5em}
.wide-table tbody tr:first-child>*{border-top:1px solid var(--grid)} .wide-table tbody th{color:var(--ink);font-weight:600}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--hue);margin-right:8px}
.axes{margin:0;padding:0;border:0;min-width:0} .axes>input{position:absolute;opacity:0}
.axes>label{display:inline-block;padding:5px 14px;margin:0 6px 12px 0;border:1px solid var(--line);border-radius:99px;
 font-size:14px;font-weight:600;color:var(--soft);background:var(--card);cursor:pointer}
.axes>input:checked+label{color:var(--card);background:var(--indigo);border-color:var(--indigo)}
.axes>input:focus-visible+label{outline:2px solid var(--amber);outline-offset:2px}
.axes .charts{display:none}
@media print{.axes>label{display:none} .axes>input:checked+label{display:inline-block}}
"""


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page; returns its path. Raises OSError."""
    write_page(path, render_comparison(comparison))
    return path


def render_comparison(comparison: Comparison) -> str:
    """The page as text."""
    names = [group.name for group in comparison.groups]
    title = f"{names[0]} against {', '.join(names[1:])}"
    notes = "".join(f"<li>{shown_text(note)}</li>" for note in comparison.notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{PAGE_POLICY}<title>{shown_text(title)} · firstlight</title><style>{PAGE_CSS}{COMPARE_CSS}{_axis_css()}</style></head><body>"
        f'<div class="dawn"></div><header><div class="top">{LOGO}<h1>{shown_text(title)}</h1></div>'
        '<p class="sub">bpb: bits that a model needs for each byte of text it has never seen; lower is better.'
        f" The first, {shown_text(names[0])}, is the baseline.</p></header><main>"
        f'<section class="answers" aria-label="Verdicts">{_answers(comparison)}</section>'
        f"<h2>Final numbers</h2>{_final(comparison)}"
        f"<h2>What differs</h2>{_differs(comparison)}"
        f"<h2>On the way</h2>{_curves(comparison)}{_needed(comparison)}"
        + (f'<h2>Notes</h2><div class="card answer"><ul class="notes">{notes}</ul></div>' if notes else "")
        + f"</main><footer>Made by firstlight on {shown_date(time.time())}. How to read a verdict: docs/comparing.md.</footer>"
        f"<script>{HOVER_JS}</script></body></html>\n"
    )


def _axis_css() -> str:
    return "".join(f"#axis-{axis}:checked~.over-{axis}{{display:grid}}" for axis in AXES)


def _answers(comparison: Comparison) -> str:
    cards = []
    for found in comparison.verdicts:
        kind = "refused" if found.difference is None else "shown"
        if found.difference is not None and found.difference.outcome == "no difference shown":
            kind = "none"
        small = "".join(f'<p class="small">{shown_text(line)}</p>' for line in comparison.small_print(found))
        cards.append(
            f'<div class="card answer {kind}"><p class="tag">{shown_text(found.baseline.name)} (A) and'
            f" {shown_text(found.other.name)} (B)</p>"
            f'<p class="says">{shown_text(_capital(comparison.sentence(found)))}</p>{small}</div>'
        )
    return "".join(cards)


def _capital(text: str) -> str:
    # Names of runs keep their case.
    return text[0].upper() + text[1:] if text.startswith("no ") else text


def _final(comparison: Comparison) -> str:
    columns, rows = final_rows(comparison)
    hues = _hues(comparison.groups)
    return _wide_table(columns, rows, keys=[hue for hue, _ in hues])


def _differs(comparison: Comparison) -> str:
    rows = [[one.name.replace("_", " "), *one.values] for one in comparison.differs if one.matters]
    others = [[one.name.replace("_", " "), *one.values] for one in comparison.differs if not one.matters]
    columns = ["", *(group.name for group in comparison.groups)]
    body = _wide_table(columns, rows, text=True) if rows else '<p class="hint">Nothing that changes what is learnt.</p>'
    if others:
        body += (
            "<details><summary>Also different, and not part of a setting: seeds, machine, versions, how it reports"
            f" ({len(others)})</summary>{_wide_table(columns, others, text=True)}</details>"
        )
    return body


def _curves(comparison: Comparison) -> str:
    curves = comparison.curves.values()
    axes = [axis for axis in AXES if curves and all(axis in one.at for one in curves)]
    if not axes:
        return '<p class="hint">No curves: a run has no training rows in its metrics.jsonl.</p>'
    buttons = "".join(
        f'<input type="radio" name="axis" id="axis-{axis}"{" checked" if axis == axes[0] else ""}>'
        f'<label for="axis-{axis}">{_AXIS_NAMES[axis]}</label>'
        for axis in axes
    )
    panels = "".join(
        f'<section class="charts over-{axis}" aria-label="Curves over {_AXIS_NAMES[axis]}">'
        + "".join(
            '<figure class="card" style="margin:0">'
            + draw_chart(chart, width=548, height=360, css_class="wide")
            + draw_chart(chart, width=350, height=300, css_class="narrow")
            + "</figure>"
            for chart in (
                _chart(comparison, axis, "Validation", "bits per byte, first documents", "bpb"),
                _chart(comparison, axis, "Training loss", "nats per token, smoothed", "loss"),
            )
        )
        + "</section>"
        for axis in axes
    )
    tokenizers = {run.record.tokenizer_hash for group in comparison.groups for run in group.runs}
    several = any(len(group.runs) > 1 for group in comparison.groups)
    hint = "Choose what the curves run over." + (" Thick: mean over seeds; thin: each seed." if several else "")
    if len(tokenizers) > 1:
        hint += " The tokenizers differ, so losses per token cannot be compared; bits per byte can."
    return f'<p class="hint">{hint}</p><fieldset class="axes" aria-label="Axis">{buttons}{panels}</fieldset>'


def _chart(comparison: Comparison, axis: str, title: str, unit: str, what: str) -> Chart:
    series = []
    for group, (hue, dash) in zip(comparison.groups, _hues(comparison.groups), strict=True):
        each: list[Points] = []
        at: list[Points] = []
        for run in group.runs:
            found = comparison.curves[str(run.path)]
            each.append(list(found.bpb if what == "bpb" else found.loss))
            at.append(list(found.at[axis]))
        if len(each) > 1:
            series += [Series("", over(one, x), "faint", hue=hue) for one, x in zip(each, at, strict=True) if one]
        kind = "dots" if what == "bpb" else "line"
        series.append(Series(group.name, over(mean_curve(each), mean_curve(at)), kind, hue=hue, dash=dash))
    points = [point for one in series for point in one.points]
    return Chart(title, unit, series, x_label=AXES[axis], y_range=late_range(points))


def _needed(comparison: Comparison) -> str:
    if not comparison.needed:
        return ""
    columns, rows = needed_rows(comparison)
    return (
        "<h2>What it takes to get as far</h2>"
        '<p class="hint">In brackets: as a part of what the baseline took. Read off the validation curves on straight lines between scores. A curve is above what a run'
        " planned for that length would reach, because its learning rate is still high there.</p>"
        + _wide_table(columns, rows)
    )


def _hues(groups: Sequence[Group]) -> list[tuple[str, str]]:
    return [(HUES[i % len(HUES)], ("", "6 4", "2 4")[i // len(HUES) % 3]) for i in range(len(groups))]


def _wide_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, keys: Sequence[str] = (), text: bool = False
) -> str:
    head = "".join(f'<th scope="col">{shown_text(column)}</th>' for column in columns)
    css = ' class="text"' if text else ""
    body = ""
    for i, (first, *rest) in enumerate(rows):
        key = f'<span class="key {keys[i]}"></span>' if keys else ""
        cells = "".join(f"<td{css}>{shown_text(value)}</td>" for value in rest)
        body += f'<tr><th scope="row">{key}{shown_text(first)}</th>{cells}</tr>'
    return f'<div class="card wide-table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
