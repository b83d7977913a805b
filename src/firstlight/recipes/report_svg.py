"""Curves as SVG, drawn in plain Python: no plotting library, no script, no request. Colours come from CSS classes.

Coordinates: a chart is ``width`` x ``height`` pixels; data are mapped into the plot area inside the margins, linearly or
by their logarithms.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One curve. kind: ``line``, ``faint`` (raw values behind a smooth line) or ``dots`` (a line with a mark at each
    point).

    points: (x, y), finite, x rising. errors: half lengths of error bars (one standard error), or empty.
    hue: CSS class of this curve's colour (indigo, amber, violet, teal, green, rose), where it is not the chart's; a chart
    with such a curve lists all named ones in rows under its title. dash: an SVG dash pattern, such as "6 4".
    """

    name: str
    points: Points
    kind: str = "line"
    errors: Sequence[float] = ()
    hue: str = ""
    dash: str = ""


@dataclass(frozen=True)
class Chart:
    """A titled plot. hue: CSS class of the colour. y_range: fixed limits; where None they follow from the points.

    level: a horizontal line with a meaning, as (value, label); drawn where it falls inside the limits.
    marks: x values at which something happened (refused updates).
    x_log, y_log: logarithmic axes. Points at or below 0 have no place on one: they are left out, and their number is said.
    """

    title: str
    unit: str
    series: Sequence[Series]
    hue: str = "indigo"
    x_label: str = "step"
    y_range: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    marks: Sequence[float] = field(default_factory=tuple)
    x_log: bool = False
    y_log: bool = False


HUES = ("indigo", "amber", "teal", "rose", "green", "violet")
"""Colours for several curves, in the order in which they are told apart best."""


@dataclass(frozen=True)
class _Axis:
    """Limits of the data, low < high (both above 0 where is_log), and the pixels between them."""

    low: float
    high: float
    length: int
    is_log: bool = False

    def at(self, value: float) -> float:
        """Pixels from the end where the low values are; values at or below 0 on a logarithmic axis are at that end."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low) * self.length
        if value <= 0:
            return 0.0
        return math.log(value / self.low) / math.log(self.high / self.low) * self.length

    def ticks(self, most: int) -> list[float]:
        return (log_ticks if self.is_log else nice_ticks)(self.low, self.high, most)


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


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` numbers for a logarithmic axis inside [low, high], 0 < low < high: 1, 2 and 5 times powers of ten,
    or powers of ten alone, or every second one ...; plain round numbers where the limits are near each other.

    >>> log_ticks(3, 400, 9)
    [5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
    >>> log_ticks(1, 1e6, 4)
    [1.0, 100.0, 10000.0, 1000000.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside = [
        [float(f"{factor}e{power}") for power in range(first, last + 1) if power % every == 0 for factor in factors]
        for every, factors in [(1, (1, 2, 5)), (1, (1, 3)), *((every, (1,)) for every in range(1, last - first + 2))]
    ]
    for candidates in inside:
        ticks = [tick for tick in candidates if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks if len(ticks) >= 3 else nice_ticks(low, high, most)
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
    shown, num_off_axis = _on_axes(chart)
    legend, legend_h = _legend(chart, width)
    left, right, top, bottom = 56, 16, 44 + legend_h, 40
    plot_w, plot_h = width - left - right, height - top - bottom
    every = [p for series in shown for p in series.points]
    place = f'x="{nested_at[0]}" y="{nested_at[1]}" ' if nested_at else ""
    out = [
        f'<svg {place}class="chart {chart.hue} {css_class}" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{html.escape(_describe(chart, shown, num_off_axis), quote=True)}">',
        f'<text class="title" x="14" y="24">{html.escape(chart.title)}'
        f'<tspan class="unit" dx="8">{html.escape(chart.unit)}</tspan></text>',
    ]
    if not every:
        out.append(
            f'<text class="tick" x="{width / 2}" y="{height / 2}" text-anchor="middle">no values yet</text></svg>'
        )
        return "".join(out)

    x_axis = _Axis(
        *_widen(min(p[0] for p in every), max(p[0] for p in every), 0.0, is_log=chart.x_log), plot_w, chart.x_log
    )
    y_axis = _Axis(*_widen(*(chart.y_range or _limits(chart, shown)), 0.0, is_log=chart.y_log), plot_h, chart.y_log)
    px = x_axis.at

    def py(y: float) -> float:
        return plot_h - y_axis.at(y)

    y_ticks = y_axis.ticks(max(3, plot_h // 34))
    y_text = (_log_formatter if chart.y_log else _formatter)(y_ticks)
    for y in y_ticks:
        at = top + py(y)
        out.append(f'<line class="grid" x1="{left}" x2="{left + plot_w}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(
            f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{html.escape(y_text(y))}</text>'
        )
    x_ticks = x_axis.ticks(max(3, plot_w // 68))
    x_text = (_log_formatter if chart.x_log else _formatter)(x_ticks)
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
    logs = f"{chart.x_log:d} {chart.y_log:d}"
    out.append(
        f'<svg class="plot" x="{left - room}" y="{top - room}" width="{plot_w + 2 * room}" height="{plot_h + 2 * room}"'
        f' viewBox="{-room} {-room} {plot_w + 2 * room} {plot_h + 2 * room}" overflow="hidden"'
        f' data-box="{left} {plot_w} {plot_h}" data-log="{logs}" data-x="{html.escape(chart.x_label, quote=True)}"'
        f' data-range="{x_axis.low!r} {x_axis.high!r} {y_axis.low!r} {y_axis.high!r}">'
    )
    if chart.level and y_axis.low < chart.level[0] < y_axis.high:
        at = py(chart.level[0])
        out.append(f'<line class="level" x1="0" x2="{plot_w}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(
            f'<text class="level-label" x="{plot_w - 4}" y="{at - 5:.1f}" text-anchor="end">{html.escape(chart.level[1])}</text>'
        )
    for x in chart.marks:
        out.append(
            f'<path class="mark" d="M{px(x) - 5:.1f},{plot_h}h10l-5,-9z"><title>update refused at step {x:g}</title></path>'
        )
    for series in shown:
        drawn = _draw_series(series, px, py, num_buckets=max(60, plot_w // 2), x_label=chart.x_label)
        hue = f'<g class="{series.hue}" data-name="{html.escape(series.name, quote=True)}">' if series.hue else ""
        out.extend([hue, *drawn, "</g>"] if hue and drawn else drawn)
    out.append("</svg>")
    out.append(legend)
    out.append("</svg>")
    return "".join(out)


def _on_axes(chart: Chart) -> tuple[list[Series], int]:
    """The series without the points that have no place on a logarithmic axis, and how many those were."""
    shown, num_left_out = [], 0
    for series in chart.series:
        errors = list(series.errors) + [0.0] * (len(series.points) - len(series.errors)) if series.errors else []
        kept = [
            i for i, (x, y) in enumerate(series.points) if (x > 0 or not chart.x_log) and (y > 0 or not chart.y_log)
        ]
        num_left_out += len(series.points) - len(kept) if series.kind != "faint" else 0
        points = [series.points[i] for i in kept]
        shown.append(replace(series, points=points, errors=[errors[i] for i in kept] if errors else []))
    return shown, num_left_out


def _draw_series(
    series: Series, px: Callable[[float], float], py: Callable[[float], float], *, num_buckets: int, x_label: str
) -> list[str]:
    points = series.points if series.errors else thin(series.points, num_buckets=num_buckets)
    if not points:
        return []
    path = "M" + "L".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
    css = {"faint": "curve faint", "line": "curve", "dots": "curve"}[series.kind]
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    parts = [f'<path class="{css}"{dash} d="{path}"/>'] if len(points) > 1 else []
    for (x, y), error in zip(points, series.errors, strict=False):
        low, high = py(y - error), py(y + error)
        parts.append(
            f'<path class="error" d="M{px(x):.1f},{low:.1f}V{high:.1f}M{px(x) - 3:.1f},{low:.1f}h6M{px(x) - 3:.1f},{high:.1f}h6"/>'
        )
    if series.kind == "dots" or len(points) == 1:
        for i, (x, y) in enumerate(points):
            plus_minus = f" ± {series.errors[i]:.4f}" if i < len(series.errors) else ""
            parts.append(
                f'<circle class="dot" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5"><title>'
                f"{html.escape(f'{series.name}, ' if series.hue else '')}{html.escape(x_label)} {x:g}: {y:.4f}{plus_minus}</title></circle>"
            )
    return parts


def _legend(chart: Chart, width: int) -> tuple[str, int]:
    """The names of the curves, as SVG, and the height of the rows that they take under the title."""
    named = [series for series in chart.series if series.name]
    if any(series.hue for series in named):
        return _legend_rows(named, width)
    if len(named) < 2 or width < 480:
        return "", 0
    # The text's width is a guess (its font is the reader's), on the wide side.
    parts, x = [], width - 16.0
    for series in reversed(named):
        css = "curve faint" if series.kind == "faint" else "curve"
        x -= 7.0 * len(series.name)
        parts.append(f'<text class="tick" x="{x:.0f}" y="24">{html.escape(series.name)}</text>')
        parts.append(f'<path class="{css}" d="M{x - 24:.0f},20H{x - 6:.0f}"/>')
        x -= 38
    return "".join(parts), 0


def _legend_rows(named: Sequence[Series], width: int) -> tuple[str, int]:
    parts, x, y = [], 14.0, 44
    for series in named:
        longest = int((width - 60) / 7)
        name = series.name if len(series.name) <= longest else series.name[: longest - 1] + "…"
        needed = 40 + 7.0 * len(name)
        if x > 14 and x + needed > width:
            x, y = 14.0, y + 18
        css = "curve faint" if series.kind == "faint" else "curve"
        dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
        parts.append(f'<g class="{series.hue}"><path class="{css}"{dash} d="M{x:.0f},{y - 4}h20"/></g>')
        parts.append(f'<text class="tick" x="{x + 26:.0f}" y="{y}">{html.escape(name)}</text>')
        x += needed
    return "".join(parts), y - 34


def _limits(chart: Chart, shown: Sequence[Series]) -> tuple[float, float]:
    lows, highs = [], []
    for series in shown:
        for i, (_, y) in enumerate(series.points):
            error = series.errors[i] if i < len(series.errors) else 0.0
            lows.append(y - error if y > error or not chart.y_log else y)
            highs.append(y + error)
    return _widen(min(lows), max(highs), 0.06, is_log=chart.y_log)


def _widen(low: float, high: float, frac: float, *, is_log: bool = False) -> tuple[float, float]:
    """Limits with ``frac`` of their distance (that of their logarithms) added on either side, and never equal."""
    if is_log:
        low = max(low, 1e-300)
        if high <= low:
            return low / 1.5, low * 1.5
        return low * (low / high) ** frac, high * (high / low) ** frac
    if high <= low:
        half = abs(low) * 0.1 or 0.5
        return low - half, low + half
    return low - frac * (high - low), high + frac * (high - low)


def _formatter(ticks: Sequence[float]) -> Callable[[float], str]:
    """Text for the ticks of one axis: all with the decimals that their distance needs, large ones all in thousands
    (5K, 12K).
    """
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 1e13:
        return _power
    divisor, unit = next(((d, u) for d, u in ((1e9, "G"), (1e6, "M"), (1e3, "K")) if largest >= 10 * d), (1.0, ""))
    step = min((b - a for a, b in pairwise(ticks)), default=1.0) / divisor
    decimals = max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return lambda value: f"{value / divisor:.{decimals}f}{unit}" if value else "0" if unit else f"{0:.{decimals}f}"


def _log_formatter(ticks: Sequence[float]) -> Callable[[float], str]:
    """Text for the ticks of a logarithmic axis, each with its own unit (500, 10K, 2M, 5e+15)."""

    def show(value: float) -> str:
        if value >= 1e13 or value < 1e-3:
            return _power(value)
        divisor, unit = next(((d, u) for d, u in ((1e9, "G"), (1e6, "M"), (1e3, "K")) if value >= d), (1.0, ""))
        return f"{value / divisor:.6g}{unit}"

    return show


def _power(value: float) -> str:
    """1.5e15, for numbers too large for a unit."""
    return f"{value:.3g}".replace("e+", "e").replace("e-0", "e-") if value else "0"


def _describe(chart: Chart, shown: Sequence[Series], num_off_axis: int) -> str:
    parts = [series for series in shown if series.points and series.kind != "faint"] or [s for s in shown if s.points]
    if not parts:
        return f"{chart.title} ({chart.unit}): no values yet"
    if not any(series.hue for series in parts):
        parts = parts[-1:]
    said = []
    for series in parts:
        (x0, y0), (x1, y1) = series.points[0], series.points[-1]
        name = f"{series.name} " if series.hue and series.name else ""
        said.append(f"{name}from {y0:.4g} at {x0:g} to {y1:.4g} at {x1:g}")
    left_out = f" ({num_off_axis} at or below 0 not shown: the axis is logarithmic)" if num_off_axis else ""
    return f"{chart.title} ({chart.unit}) by {chart.x_label}: {'; '.join(said)}{left_out}"
