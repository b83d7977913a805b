"""A scaling study as one self-contained page: the curves, the fits, and what they mean in plain words.

Like a run's page: no request, no script, light and dark, readable on a phone. Everything from the study is escaped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from firstlight.recipes import report
from firstlight.recipes.report import shown_text
from firstlight.recipes.report_style import LOGO, PAGE_CSS
from firstlight.recipes.scale.charts import Curve, Mark, Plot, Span, draw_plot, hue
from firstlight.recipes.scale.fit import BudgetFit, StudyFit
from firstlight.recipes.scale.interval import Interval
from firstlight.recipes.scale.reading import headline, read_study_in_words
from firstlight.recipes.scale.results import StudyResults
from firstlight.runtime.console import format_count, format_duration

STUDY_CSS = """
.lowest{fill:var(--hue);stroke:var(--card);stroke-width:1} .scroll{overflow-x:auto;padding:10px 18px}
.grid-table th,.grid-table td{padding:6px 14px 6px 0;white-space:nowrap;width:auto;text-align:right}
.grid-table th:first-child,.grid-table td:first-child{text-align:left} .grid-table thead th{font-weight:600}
.reading{padding:16px 22px} .reading p{margin:0 0 10px} .reading p:last-child{margin:0}
.score .value.words{font-size:30px;letter-spacing:-.02em}
.charts{margin-bottom:20px} .chart .ink{--hue:var(--ink)} .chart .end{stroke:none;fill:none}
"""
CURVE_POINTS = 80


def write_page(path: Path, results: StudyResults) -> Path:
    """Write the page in one move; returns its path. Raises OSError."""
    report.write_page(path, render_page(results))
    return path


def render_page(results: StudyResults) -> str:
    """The whole page as text."""
    study, fit = results.study, results.fit
    status = "done" if results.is_complete else "running"
    shown = "done" if results.is_complete else f"{results.num_done} of {len(results.outcomes)} cells"
    sub = [
        f"depths {', '.join(map(str, study.depths))}", f"{len(study.budgets)} budgets", f"on {Path(study.common.data).name}",
        f"preset {study.rules.preset}", f"vocabulary {study.rules.vocab_size:,}", f"rows of {study.rules.seq_len}",
    ]  # fmt: skip
    if study.launches_s:
        sub.append(format_duration(sum(study.launches_s)))
    figures = ""
    if fit is not None:
        plots = [iso_plot(fit), ratio_plot(fit), compute_plot(fit), best_plot(fit)]
        figures = (
            '<section class="charts" aria-label="Curves">' + "".join(_figure(p) for p in plots if p) + "</section>"
        )
    reading = "".join(f"<p>{shown_text(sentence)}</p>" for sentence in read_study_in_words(results))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{shown_text(study.name)} · scaling study · firstlight</title><style>{PAGE_CSS}{STUDY_CSS}</style></head><body>"
        f'<div class="dawn"></div><header><div class="top">{LOGO}<h1>{shown_text(study.name)}</h1>'
        f'<span class="pill {status}">{shown}</span></div><p class="sub">Scaling study · {shown_text(" · ".join(sub))}</p></header>'
        f'<main><section class="verdict" aria-label="Results">{_score_card(results)}{_tiles(fit)}</section>{figures}'
        f'<h2>What it says</h2><div class="card reading">{reading}</div>'
        + ("" if fit is None else _budget_table(fit) + _surface_table(fit))
        + _cell_table(results)
        + _notes(results)
        + f"</main><footer>Made by firstlight on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}. Every number is in"
        " results.json beside this page.</footer></body></html>\n"
    )


def _figure(plot: Plot) -> str:
    return (
        '<figure class="card" style="margin:0">'
        + draw_plot(plot, width=548, height=380, css_class="wide")
        + draw_plot(plot, width=350, height=330, css_class="narrow")
        + "</figure>"
    )


def parabola_points(fit: BudgetFit, low: float, high: float) -> list[tuple[float, float]]:
    """(N, bpb) along a budget's parabola between two sizes."""
    c0, c1, c2 = fit.curve
    z = np.linspace(math.log(low), math.log(high), CURVE_POINTS) - fit.centre
    return [(float(math.exp(v + fit.centre)), float(c0 + c1 * v + c2 * v * v)) for v in z]


def iso_plot(fit: StudyFit) -> Plot:
    """bpb over parameters, one colour a budget: cells, parabola, and its lowest point with the interval of its size."""
    budgets = sorted({p.budget for p in fit.points})
    sizes = [p.num_params for p in fit.points]
    curves = [
        Curve(parabola_points(b, 0.5 * min(sizes), 2.0 * max(sizes)), hue(budgets.index(b.budget))) for b in fit.budgets
    ]
    marks = [
        Mark(
            p.num_params, p.bpb, hue(budgets.index(p.budget)), error=2 * fit.seed_noise / math.sqrt(p.num_seeds),
            text=f"{format_count(p.num_params)} parameters, {format_count(p.num_tokens)} tokens: {p.bpb:.4f} ± {p.stderr:.4f}",
        )
        for p in fit.points
    ]  # fmt: skip
    spans = [
        Span(
            b.best_params.value, b.best_bpb.value, hue(budgets.index(b.budget)), b.best_params.low, b.best_params.high,
            text=f"best size at {b.flops:.2g} FLOPs: {_shown(b.best_params)}",
        )
        for b in fit.budgets
        if b.best_params.value is not None and b.best_bpb.value is not None
    ]  # fmt: skip
    flops = {b: _mean_flops(fit, b) for b in budgets}
    legend = [(hue(i), f"{flops[b]:.2g} FLOPs", "mark") for i, b in enumerate(budgets)]
    return Plot(
        "Same compute, other sizes", "bits per byte", "parameters (matrices and head)", curves, marks, spans,
        [*legend, ("ink", "best size, 95 %", "span")],
    )  # fmt: skip


def ratio_plot(fit: StudyFit) -> Plot:
    """The same cells and parabolas over tokens per parameter: where each budget is best spent."""
    budgets = sorted({p.budget for p in fit.points})
    sizes = [p.num_params for p in fit.points]
    curves = [
        Curve(
            [
                (b.flops / fit.flops_per_param_token / n**2, y)
                for n, y in parabola_points(b, 0.5 * min(sizes), 2.0 * max(sizes))
            ],
            hue(budgets.index(b.budget)),
        )
        for b in fit.budgets
    ]
    marks = [
        Mark(
            p.num_tokens / p.num_params, p.bpb, hue(budgets.index(p.budget)),
            text=f"{p.num_tokens / p.num_params:.3g} tokens per parameter at {p.flops:.2g} FLOPs: {p.bpb:.4f}",
        )
        for p in fit.points
    ]  # fmt: skip
    spans = [
        Span(
            b.tokens_per_param.value, b.best_bpb.value, hue(budgets.index(b.budget)), b.tokens_per_param.low,
            b.tokens_per_param.high, text=f"best at {b.flops:.2g} FLOPs: {b.tokens_per_param.describe()} tokens per parameter",
        )
        for b in fit.budgets
        if b.tokens_per_param.value is not None and b.best_bpb.value is not None
    ]  # fmt: skip
    legend = [(hue(i), f"{_mean_flops(fit, b):.2g} FLOPs", "mark") for i, b in enumerate(budgets)]
    return Plot(
        "Same compute, other ratios", "bits per byte", "tokens per parameter", curves, marks, spans,
        [*legend, ("ink", "best ratio, 95 %", "span")],
    )  # fmt: skip


def compute_plot(fit: StudyFit) -> Plot:
    """bpb over compute: each size's cells joined, and the lowest points of the parabolas."""
    sizes = sorted({p.num_params for p in fit.points})
    curves = [
        Curve([(p.flops, p.bpb) for p in sorted(fit.points, key=lambda p: p.flops) if p.num_params == size], hue(i))
        for i, size in enumerate(sizes)
    ]
    best = [(b.flops, b.best_bpb.value) for b in fit.budgets if b.best_bpb.value is not None]
    curves.append(Curve(best, "ink", "5 4"))
    marks = [
        Mark(
            p.flops, p.bpb, hue(sizes.index(p.num_params)),
            text=f"{p.flops:.3g} FLOPs, {p.num_tokens / p.num_params:.3g} tokens per parameter: {p.bpb:.4f}",
        )
        for p in fit.points
    ]  # fmt: skip
    legend = [(hue(i), f"N = {format_count(size)}", "mark") for i, size in enumerate(sizes)]
    return Plot(
        "More compute",
        "bits per byte",
        "training FLOPs",
        curves,
        marks,
        [],
        [*legend, ("ink", "best size", "dash")],
    )


def best_plot(fit: StudyFit) -> Plot | None:
    """The best size over compute by both approaches; None where fewer than two budgets fix one."""
    found = [b for b in fit.budgets if b.best_params.is_determined]
    if len(found) < 2:
        return None
    marks = [
        Mark(b.flops, b.best_params.value or 0.0, "indigo", text=f"{b.flops:.2g} FLOPs: {_shown(b.best_params)}")
        for b in found
    ]
    bars = [
        Curve([(b.flops, b.best_params.low), (b.flops, b.best_params.high)], "indigo")
        for b in found
        if b.best_params.low is not None and b.best_params.high is not None
    ]
    legend = [("indigo", "parabolas, 95 %", "mark")]
    # Where no split of compute follows from the surface, its line would be made up.
    if fit.surface is not None and fit.surface.params_exponent.is_determined:
        lines = [
            (b.flops, best.value) for b, best in zip(fit.budgets, fit.surface.best_params, strict=True) if best.value
        ]
        bars.append(Curve(lines, "amber", "5 4"))
        legend.append(("amber", "surface", "dash"))
        marks += [Mark(x, y, "amber", text=f"surface: {format_count(y)}") for x, y in lines]
    marks += [
        Mark(b.flops, end, "indigo end")
        for b in found
        for end in (b.best_params.low, b.best_params.high)
        if end is not None
    ]
    return Plot("Best size", "parameters", "training FLOPs", bars, marks, [], legend, y_log=True)


def _score_card(results: StudyResults) -> str:
    big, words = headline(results)
    return (
        '<div class="card score"><p class="what">Compute-optimal tokens per parameter</p>'
        f'<div class="value words">{shown_text(big)}</div><p>{shown_text(words)}</p></div>'
    )


def _tiles(fit: StudyFit | None) -> str:
    def show(interval: Interval | None) -> str:
        if interval is None:
            return "–"
        if interval.value is None or (interval.low is None and interval.high is None):
            return "– <small>not determined</small>"
        low, high = (f"{v:.2f}" if v is not None else "open" for v in (interval.low, interval.high))
        return f"{interval.value:.2f} <small>{low} to {high}</small>"

    surface = fit.surface if fit is not None else None
    tiles = [
        ("N_opt ~ C^a, parabolas", fit.params_exponent if fit else None),
        ("N_opt ~ C^a, surface", surface.params_exponent if surface else None),
        ("E, bits per byte", surface.E if surface else None),
        ("D_opt ~ C^b, parabolas", fit.tokens_exponent if fit else None),
        ("alpha, of size", surface.alpha if surface else None),
        ("beta, of tokens", surface.beta if surface else None),
    ]
    cells = "".join(f'<div class="tile"><dt>{name}</dt><dd>{show(value)}</dd></div>' for name, value in tiles)
    return f'<dl class="card tiles">{cells}</dl>'


def _budget_table(fit: StudyFit) -> str:
    rows = [
        [
            f"{b.flops:.3g}", _shown(b.best_params), _shown(b.best_tokens), b.tokens_per_param.describe(),
            b.best_bpb.describe(".4f"),
        ]
        for b in fit.budgets
    ]  # fmt: skip
    if not rows:
        return ""
    return (
        '<h2>Best size of each budget</h2><p class="hint">From the parabolas, with the middle 95 % of the bootstrap.</p>'
        + _table(["FLOPs", "best N", "best tokens", "tokens per parameter", "bits per byte"], rows)
    )


def _surface_table(fit: StudyFit) -> str:
    found = fit.surface
    if found is None:
        return ""
    rows = [
        [f"{p.flops:.3g}", format_count(p.num_params), format_count(p.num_tokens), f"{p.bpb:.4f}", f"{said:.4f}", f"{p.bpb - said:+.4f}"]
        for p, said in zip(fit.points, found.predicted, strict=True)
    ]  # fmt: skip
    constants = ", ".join(f"{name} = {getattr(found, name).describe()}" for name in ("E", "A", "alpha", "B", "beta"))
    return (
        f'<h2>The surface L(N, D) = E + A / N^alpha + B / D^beta</h2><p class="hint">{shown_text(constants)}</p>'
        + _table(["FLOPs", "N", "tokens", "measured", "surface", "difference"], rows)
    )


def _cell_table(results: StudyResults) -> str:
    rows = []
    for outcome in results.outcomes:
        cell = outcome.cell
        score = f"{outcome.bpb:.4f} ± {outcome.stderr or 0.0:.4f}" if outcome.is_done else "–"
        rows.append([
            cell.run, str(cell.depth), format_count(cell.num_params), format_count(cell.num_all_params), f"{cell.flops:.3g}",
            format_count(cell.num_tokens), f"{cell.tokens_per_param:.3g}", f"{cell.num_steps:,}",
            f"{cell.num_tokens / results.study.num_train_tokens:.2f}", score,
            format_duration(outcome.elapsed_s) if outcome.elapsed_s is not None else "–",
            outcome.status + (f": {outcome.problem}" if outcome.problem else ""),
        ])  # fmt: skip
    heads = [
        "run", "depth", "N", "all parameters", "FLOPs", "tokens", "tokens/N", "steps", "epochs", "bits per byte", "time", "status",
    ]  # fmt: skip
    return (
        '<h2>The cells</h2><p class="hint">N counts the matrices and the head: the parameters that each token is multiplied'
        " with.</p>" + _table(heads, rows)
    )


def _notes(results: StudyResults) -> str:
    notes = list(results.study.notes)
    if results.fit is not None:
        notes += results.fit.notes
    items = "".join(f"<li>{shown_text(note)}</li>" for note in notes)
    return f'<h2>Choices and doubts</h2><div class="card reading"><ul class="notes">{items}</ul></div>' if items else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{shown_text(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{shown_text(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="card scroll"><table class="grid-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(interval: Interval) -> str:
    """An interval of counts: ``1.2M (0.9M to 1.6M)``."""
    if interval.value is None:
        return "not determined"
    low = format_count(interval.low) if interval.low is not None else "open"
    high = format_count(interval.high) if interval.high is not None else "open"
    return f"{format_count(interval.value)} ({low} to {high})"


def _mean_flops(fit: StudyFit, budget: int) -> float:
    return math.exp(np.mean([math.log(p.flops) for p in fit.points if p.budget == budget]))
