"""The pictures of a scaling study as SVG: marks with error bars, curves, and lowest points with the interval of their size.

They are not training curves: marks are not joined, an interval lies along x, and several budgets share one plot.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from firstlight.recipes.report_svg import HUES, log_ticks, nice_ticks
from firstlight.runtime.console import format_count

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line through points. dash: an SVG dash pattern."""

    points: Points
    hue: str
    dash: str = ""


@dataclass(frozen=True)
class Mark:
    """A measured point. error: half length of its bar along y. text: shown where a pointer rests on it."""

    x: float
    y: float
    hue: str
    error: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Span:
    """An estimated point with its interval along x, drawn as a diamond. low or high None: no end on that side (an arrow)."""

    x: float
    y: float
    hue: str
    low: float | None
    high: float | None
    text: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot with a logarithmic x axis. legend: (hue, words, kind) with kind ``mark``, ``line``, ``dash`` or ``span``."""

    title: str
    unit: str
    x_label: str
    curves: Sequence[Curve]
    marks: Sequence[Mark]
    spans: Sequence[Span]
    legend: Sequence[tuple[str, str, str]]
    y_log: bool = False


def hue(index: int) -> str:
    """Colour of the nth curve."""
    return HUES[index % len(HUES)]


def draw_plot(plot: Plot, *, width: int, height: int, css_class: str = "") -> str:
    """The plot as an ``<svg>`` element. Curves are cut at the limits, which follow from marks and lowest points."""
    rows = _legend_rows(plot.legend, width)
    left, right, top, bottom = 60, 16, 44 + 18 * len(rows), 42
    plot_w, plot_h = width - left - right, height - top - bottom
    label = f"{plot.title} ({plot.unit}) by {plot.x_label}: {len(plot.marks)} measured points"
    out = [
        f'<svg class="chart {css_class}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{html.escape(label, quote=True)}">',
        f'<text class="title" x="14" y="24">{html.escape(plot.title)}<tspan class="unit" dx="8">{html.escape(plot.unit)}</tspan></text>',
    ]
    xs = [m.x for m in plot.marks] + [v for s in plot.spans for v in (s.x, s.low, s.high) if v]
    ys = [v for m in plot.marks for v in (m.y - m.error, m.y + m.error)] + [s.y for s in plot.spans]
    if not xs:
        out.append(
            f'<text class="tick" x="{width / 2:.0f}" y="{height / 2:.0f}" text-anchor="middle">no values yet</text></svg>'
        )
        return "".join(out)
    x_low, x_high = _wider(min(xs), max(xs), 0.06, is_log=True)
    y_low, y_high = _wider(min(ys), max(ys), 0.07, is_log=plot.y_log)

    def px(x: float) -> float:
        return left + math.log(x / x_low) / math.log(x_high / x_low) * plot_w

    def py(y: float) -> float:
        if plot.y_log:
            return top + plot_h - math.log(y / y_low) / math.log(y_high / y_low) * plot_h
        return top + plot_h - (y - y_low) / (y_high - y_low) * plot_h

    y_ticks = (log_ticks if plot.y_log else nice_ticks)(y_low, y_high, max(3, plot_h // 40))
    for y in y_ticks:
        out.append(f'<line class="grid" x1="{left}" x2="{left + plot_w}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        text = format_count(y) if plot.y_log else f"{y:.2f}"
        out.append(f'<text class="tick" x="{left - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{text}</text>')
    for x in log_ticks(x_low, x_high, max(3, plot_w // 64)):
        out.append(
            f'<line class="axis" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{top + plot_h}" y2="{top + plot_h + 4}"/>'
        )
        out.append(
            f'<text class="tick" x="{px(x):.1f}" y="{top + plot_h + 18}" text-anchor="middle">{_count(x)}</text>'
        )
    out.append(f'<line class="axis" x1="{left}" x2="{left + plot_w}" y1="{top + plot_h}" y2="{top + plot_h}"/>')
    out.append(
        f'<text class="label" x="{left + plot_w / 2:.0f}" y="{height - 8}" text-anchor="middle">{html.escape(plot.x_label)}</text>'
    )
    for number, row in enumerate(rows):
        out += _legend_row(row, x=14, y=46 + 18 * number)
    for curve in plot.curves:
        for piece in _inside(curve.points, x_low, x_high, y_low, y_high):
            path = "L".join(f"{px(x):.1f},{py(y):.1f}" for x, y in piece)
            dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
            out.append(f'<path class="curve {curve.hue}" d="M{path}"{dash}/>')
    for mark in plot.marks:
        x, y = px(mark.x), py(mark.y)
        if mark.error > 0 and mark.y > mark.error:
            low, high = py(mark.y - mark.error), py(mark.y + mark.error)
            out.append(
                f'<path class="error {mark.hue}" d="M{x:.1f},{low:.1f}V{high:.1f}M{x - 3:.1f},{low:.1f}h6M{x - 3:.1f},{high:.1f}h6"/>'
            )
        out.append(
            f'<circle class="dot {mark.hue}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{html.escape(mark.text)}</title></circle>'
        )
    for span in plot.spans:
        x, y = px(span.x), py(span.y)
        ends = [px(span.low) if span.low else left + 1.0, px(span.high) if span.high else left + plot_w - 1.0]
        ticks = "".join(
            f"M{at:.1f},{y - 5:.1f}v10" for at, value in zip(ends, (span.low, span.high), strict=True) if value
        )
        arrows = ("" if span.low else f"M{ends[0] + 6:.1f},{y - 4:.1f}l-6,4l6,4") + (
            "" if span.high else f"M{ends[1] - 6:.1f},{y - 4:.1f}l6,4l-6,4"
        )
        out.append(f'<path class="error {span.hue}" d="M{ends[0]:.1f},{y:.1f}H{ends[1]:.1f}{ticks}{arrows}"/>')
        out.append(
            f'<path class="lowest {span.hue}" d="M{x:.1f},{y - 6:.1f}l6,6l-6,6l-6,-6z"><title>{html.escape(span.text)}</title></path>'
        )
    out.append("</svg>")
    return "".join(out)


def _count(x: float) -> str:
    if x >= 1e12:
        return f"{x:.2g}".replace("e+", "e")
    return f"{x:g}" if x < 1000 else re.sub(r"\.0+(?=[KMGT]$)", "", format_count(x))


def _wider(low: float, high: float, frac: float, *, is_log: bool) -> tuple[float, float]:
    if is_log:
        room = max(0.03, frac * math.log(high / low))
        return low * math.exp(-room), high * math.exp(room)
    room = frac * (high - low) or 0.1 * abs(low) or 0.5
    return low - room, high + room


def _inside(
    points: Points, x_low: float, x_high: float, y_low: float, y_high: float
) -> list[list[tuple[float, float]]]:
    """Pieces of a curve between the limits."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if x_low <= x <= x_high and y_low <= y <= y_high:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if len(piece) > 1]


def _legend_rows(legend: Sequence[tuple[str, str, str]], width: int) -> list[list[tuple[str, str, str]]]:
    # The text's width is a guess (its font is the reader's), on the wide side.
    rows: list[list[tuple[str, str, str]]] = []
    used = math.inf
    for entry in legend:
        needed = 42 + 6.8 * len(entry[1])
        if used + needed > width - 20:
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += needed
    return rows


def _legend_row(row: Sequence[tuple[str, str, str]], *, x: float, y: float) -> list[str]:
    out = []
    for colour, words, kind in row:
        match kind:
            case "mark":
                out.append(f'<circle class="dot {colour}" cx="{x + 9:.0f}" cy="{y - 4:.0f}" r="4"/>')
            case "span":
                out.append(f'<path class="lowest {colour}" d="M{x + 9:.0f},{y - 10:.0f}l6,6l-6,6l-6,-6z"/>')
            case _:
                dash = ' stroke-dasharray="5 4"' if kind == "dash" else ""
                out.append(f'<path class="curve {colour}" d="M{x:.0f},{y - 4:.0f}h18"{dash}/>')
        out.append(f'<text class="tick" x="{x + 24:.0f}" y="{y:.0f}">{html.escape(words)}</text>')
        x += 42 + 6.8 * len(words)
    return out
