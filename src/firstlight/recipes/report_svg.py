"""Curves as SVG, drawn in plain Python: no plotting library, no script, no request. Colours come from CSS classes.

Coordinates: a chart is ``width`` x ``height`` pixels; data are mapped linearly into the plot area inside the margins.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One curve. kind: ``line``, ``faint`` (raw values behind a smooth line) or ``dots`` (a line with a mark at each
    point).

    points: (x, y), finite, x rising. errors: half lengths of error bars (one standard error), or empty.
    """

    name: str
    points: Points
    kind: str = "line"
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """A titled plot. hue: CSS class of the colour. y_range: fixed limits; where None they follow from the points.

    level: a horizontal line with a meaning, as (value, label); drawn where it falls inside the limits.
    marks: x values at which something happened (refused updates).
    """

    title: str
    unit: str
    series: Sequence[Series]
    hue: str = "indigo"
    x_label: str = "step"
    y_range: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    marks: Sequence[float] = field(default_factory=tuple)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high], low < high.

    >>> nice_ticks(0, 1500, 5)
    [0.0, 500.0, 1000.0, 1500.0]
    """
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]
    return []


def thin(points: Points, *, num_buckets: int) -> list[tuple[float, float]]:
    """At most two points a bucket of equal numbers of points, the lowest and the highest, so that no spike
    disappears.
    """
    if len(points) <= 2 * num_buckets:
        return list(points)
    kept = []
    for i in range(num_buckets):
        bucket = points[i * len(points) // num_buckets : (i + 1) * len(points) // num_buckets]
        low, high = min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])
        kept.extend(sorted({low, high}))
    return kept


def smooth(points: Points, *, half_width: int | None = None) -> list[tuple[float, float]]:
    """Mean over a window of ``half_width`` points on either side (2 % of all where not given).

    Near the start the window shrinks and stays symmetric, so the curve does not lag behind a steep fall; at the end
    it is one-sided, so that the last value is a mean too.
    """
    width = half_width if half_width is not None else max(1, round(0.02 * len(points)))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    averaged = []
    for i, (x, _) in enumerate(points):
        reach = min(width, i)
        first, last = i - reach, min(len(points), i + reach + 1)
        averaged.append((x, (sums[last] - sums[first]) / (last - first)))
    return averaged


def robust_top(values: Sequence[float], *, frac: float = 0.99) -> float:
    """A limit above nearly all values: 15 % over the ``frac`` quantile, so that one outlier does not flatten a
    curve.
    """
    ordered = sorted(values)
    return min(ordered[-1] * 1.05, ordered[min(len(ordered) - 1, int(frac * len(ordered)))] * 1.15)


def draw_chart(
    chart: Chart, *, width: int, height: int, css_class: str = "", nested_at: tuple[int, int] | None = None
) -> str:
    """The chart as an ``<svg>`` element. nested_at: (x, y) inside another drawing.

    A chart without points is drawn with a line of text that says so.
    """
    left, right, top, bottom = 56, 16, 44, 40
    plot_w, plot_h = width - left - right, height - top - bottom
    every = [p for series in chart.series for p in series.points]
    place = f'x="{nested_at[0]}" y="{nested_at[1]}" ' if nested_at else ""
    out = [
        f'<svg {place}class="chart {chart.hue} {css_class}" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{html.escape(_describe(chart), quote=True)}">',
        f'<text class="title" x="14" y="24">{html.escape(chart.title)}'
        f'<tspan class="unit" dx="8">{html.escape(chart.unit)}</tspan></text>',
    ]
    if not every:
        out.append(
            f'<text class="tick" x="{width / 2}" y="{height / 2}" text-anchor="middle">no values yet</text></svg>'
        )
        return "".join(out)

    x_low, x_high = _widen(min(p[0] for p in every), max(p[0] for p in every), 0.0)
    y_low, y_high = chart.y_range or _limits(chart)
    y_low, y_high = _widen(y_low, y_high, 0.0)

    def px(x: float) -> float:
        return (x - x_low) / (x_high - x_low) * plot_w

    def py(y: float) -> float:
        return plot_h - (y - y_low) / (y_high - y_low) * plot_h

    y_ticks = nice_ticks(y_low, y_high, max(3, plot_h // 34))
    y_text = _formatter(y_ticks)
    for y in y_ticks:
        at = top + py(y)
        out.append(f'<line class="grid" x1="{left}" x2="{left + plot_w}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(
            f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{html.escape(y_text(y))}</text>'
        )
    x_ticks = nice_ticks(x_low, x_high, max(3, plot_w // 68))
    x_text = _formatter(x_ticks)
    for x in x_ticks:
        at = left + px(x)
        anchor = "end" if at > left + plot_w - 12 else "middle"
        out.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{top + plot_h}" y2="{top + plot_h + 4}"/>')
        out.append(f'<text class="tick" x="{at:.1f}" y="{top + plot_h + 18}" text-anchor="{anchor}">{x_text(x)}</text>')
    out.append(f'<line class="axis" x1="{left}" x2="{left + plot_w}" y1="{top + plot_h}" y2="{top + plot_h}"/>')
    out.append(
        f'<text class="label" x="{left + plot_w / 2:.0f}" y="{height - 6}" text-anchor="middle">{html.escape(chart.x_label)}</text>'
    )

    # A nested svg clips what a fixed range leaves outside, with room for the marks at the edge.
    room = 5
    out.append(
        f'<svg class="plot" x="{left - room}" y="{top - room}" width="{plot_w + 2 * room}" height="{plot_h + 2 * room}"'
        f' viewBox="{-room} {-room} {plot_w + 2 * room} {plot_h + 2 * room}" overflow="hidden"'
        f' data-box="{left} {plot_w} {plot_h}" data-range="{x_low!r} {x_high!r} {y_low!r} {y_high!r}">'
    )
    if chart.level and y_low < chart.level[0] < y_high:
        at = py(chart.level[0])
        out.append(f'<line class="level" x1="0" x2="{plot_w}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(
            f'<text class="level-label" x="{plot_w - 4}" y="{at - 5:.1f}" text-anchor="end">{html.escape(chart.level[1])}</text>'
        )
    for x in chart.marks:
        out.append(
            f'<path class="mark" d="M{px(x) - 5:.1f},{plot_h}h10l-5,-9z"><title>update refused at step {x:g}</title></path>'
        )
    for series in chart.series:
        out.extend(_draw_series(series, px, py, num_buckets=max(60, plot_w // 2)))
    out.append("</svg>")
    out.append(_legend(chart, width))
    out.append("</svg>")
    return "".join(out)


def _draw_series(
    series: Series, px: Callable[[float], float], py: Callable[[float], float], *, num_buckets: int
) -> list[str]:
    points = series.points if series.errors else thin(series.points, num_buckets=num_buckets)
    if not points:
        return []
    path = "M" + "L".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
    css = {"faint": "curve faint", "line": "curve", "dots": "curve"}[series.kind]
    parts = [f'<path class="{css}" d="{path}"/>'] if len(points) > 1 else []
    for (x, y), error in zip(points, series.errors, strict=False):
        low, high = py(y - error), py(y + error)
        parts.append(
            f'<path class="error" d="M{px(x):.1f},{low:.1f}V{high:.1f}M{px(x) - 3:.1f},{low:.1f}h6M{px(x) - 3:.1f},{high:.1f}h6"/>'
        )
    if series.kind == "dots" or len(points) == 1:
        for i, (x, y) in enumerate(points):
            plus_minus = f" ± {series.errors[i]:.4f}" if i < len(series.errors) else ""
            parts.append(
                f'<circle class="dot" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5"><title>step {x:g}: {y:.4f}{plus_minus}</title></circle>'
            )
    return parts


def _legend(chart: Chart, width: int) -> str:
    named = [series for series in chart.series if series.name]
    if len(named) < 2 or width < 480:
        return ""
    # The text's width is a guess (its font is the reader's), on the wide side.
    parts, x = [], width - 16.0
    for series in reversed(named):
        css = "curve faint" if series.kind == "faint" else "curve"
        x -= 7.0 * len(series.name)
        parts.append(f'<text class="tick" x="{x:.0f}" y="24">{html.escape(series.name)}</text>')
        parts.append(f'<path class="{css}" d="M{x - 24:.0f},20H{x - 6:.0f}"/>')
        x -= 38
    return "".join(parts)


def _limits(chart: Chart) -> tuple[float, float]:
    lows, highs = [], []
    for series in chart.series:
        for i, (_, y) in enumerate(series.points):
            error = series.errors[i] if i < len(series.errors) else 0.0
            lows.append(y - error)
            highs.append(y + error)
    return _widen(min(lows), max(highs), 0.06)


def _widen(low: float, high: float, frac: float) -> tuple[float, float]:
    if high <= low:
        half = abs(low) * 0.1 or 0.5
        return low - half, low + half
    return low - frac * (high - low), high + frac * (high - low)


def _formatter(ticks: Sequence[float]) -> Callable[[float], str]:
    """Text for the ticks of one axis: all with the decimals that their distance needs, large ones all in thousands
    (5K, 12K).
    """
    largest = max((abs(tick) for tick in ticks), default=0.0)
    divisor, unit = next(((d, u) for d, u in ((1e9, "G"), (1e6, "M"), (1e3, "K")) if largest >= 10 * d), (1.0, ""))
    step = min((b - a for a, b in pairwise(ticks)), default=1.0) / divisor
    decimals = max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return lambda value: f"{value / divisor:.{decimals}f}{unit}" if value else "0" if unit else f"{0:.{decimals}f}"


def _describe(chart: Chart) -> str:
    main = next((series for series in reversed(chart.series) if series.points), None)
    if main is None:
        return f"{chart.title} ({chart.unit}): no values yet"
    (x0, y0), (x1, y1) = main.points[0], main.points[-1]
    return f"{chart.title} ({chart.unit}) by {chart.x_label}: from {y0:.4g} at {x0:g} to {y1:.4g} at {x1:g}"
