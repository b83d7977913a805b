"""The plots: well-formed SVG with every point inside, intervals without an end, and no values at all."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from firstlight.recipes.scale.charts import Curve, Mark, Plot, Span, draw_plot


def parse(plot: Plot, width: int = 500, height: int = 320) -> ElementTree.Element:
    return ElementTree.fromstring(draw_plot(plot, width=width, height=height))


def make(**changes) -> Plot:
    values = {
        "title": "T & co", "unit": "bpb", "x_label": "N", "curves": [], "marks": [], "spans": [], "legend": [("amber", "a < b", "mark")],
    }  # fmt: skip
    return Plot(**(values | changes))


def test_points_lie_on_a_logarithmic_axis() -> None:
    root = parse(make(marks=[Mark(1e5, 2.0, "amber", 0.01, "x"), Mark(1e6, 1.9, "amber"), Mark(1e7, 2.1, "amber")]))
    xs = [float(c.get("cx")) for c in root.iter("circle") if c.find("title") is not None]
    ys = [float(c.get("cy")) for c in root.iter("circle") if c.find("title") is not None]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[1] > ys[0] > ys[2], "y grows downward"
    assert all(0 < x < 500 for x in xs)
    assert all(0 < y < 320 for y in ys)


def test_an_interval_without_an_end_is_an_arrow_to_the_edge() -> None:
    closed = draw_plot(
        make(marks=[Mark(1e6, 2, "amber")], spans=[Span(1e6, 1.9, "amber", 5e5, 2e6)]), width=500, height=320
    )
    opened = draw_plot(
        make(marks=[Mark(1e6, 2, "amber")], spans=[Span(1e6, 1.9, "amber", 5e5, None)]), width=500, height=320
    )
    assert "l6,4l-6,4" not in closed
    assert "l6,4l-6,4" in opened


def test_curves_are_cut_at_the_limits() -> None:
    steep = Curve([(10.0**k, 10.0 * abs(k - 6)) for k in range(3, 10)], "amber")
    root = parse(make(curves=[steep], marks=[Mark(1e6, 1.0, "amber"), Mark(1e7, 3.0, "amber")]))
    for path in root.iter("path"):
        assert "nan" not in path.get("d", "")


def test_no_values_and_one_value_are_drawn() -> None:
    assert "no values yet" in draw_plot(make(), width=350, height=250)
    parse(make(marks=[Mark(5.0, 5.0, "amber")], y_log=True))


def test_words_are_escaped_and_wrapped() -> None:
    text = draw_plot(
        make(marks=[Mark(1.0, 1.0, "amber", text="<b>")], legend=[("amber", f"entry {i}", "line") for i in range(12)]),
        width=350,
        height=300,
    )
    assert "<b>" not in text
    assert "T &amp; co" in text
    ElementTree.fromstring(text)


def test_ticks_are_short_numbers() -> None:
    text = draw_plot(make(marks=[Mark(0.05, 1.0, "amber"), Mark(20.0, 2.0, "amber")]), width=500, height=300)
    assert ">0.05<" in text or ">0.1<" in text
    assert ">10<" in text
    text = draw_plot(make(marks=[Mark(1e12, 1.0, "amber"), Mark(4e13, 2.0, "amber")]), width=500, height=300)
    assert ">1e13<" in text
    text = draw_plot(make(marks=[Mark(2e5, 1.0, "amber"), Mark(2e6, 2.0, "amber")]), width=500, height=300)
    assert ">500K<" in text
    assert ">1M<" in text
