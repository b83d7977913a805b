"""Charts: logarithmic axes and several curves with a legend. More tests of charts are in test_report.py."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from firstlight.recipes.report_svg import HUES, Chart, Series, draw_chart, log_ticks


def parsed(chart, *, width=272, height=184):
    return ElementTree.fromstring(draw_chart(chart, width=width, height=height))


def curves(root):
    return [e.get("d") for e in root.iter("path") if "curve" in e.get("class", "") and "L" in e.get("d")]


def texts(root):
    return [e.text for e in root.iter("text")]


def test_points_on_logarithmic_axes_are_where_their_logarithms_are():
    points = [(1.0, 1000.0), (10.0, 100.0), (1000.0, 1.0)]
    chart = Chart("t", "u", [Series("", points)], y_range=(1.0, 1000.0), x_log=True, y_log=True)
    # A plot of 200 x 100 pixels for three decades each way: 66.7 and 33.3 pixels a decade.
    assert curves(parsed(chart)) == ["M0.0,0.0L66.7,33.3L200.0,100.0"]
    chart = Chart("t", "u", [Series("", points)], y_range=(0.0, 1000.0), x_log=True)
    assert curves(parsed(chart)) == ["M0.0,0.0L66.7,90.0L200.0,99.9"]


def test_points_without_a_logarithm_are_left_out_and_counted():
    points = [(0.0, 9.0), (1.0, 3.0), (10.0, -1.0), (100.0, 2.0)]
    chart = Chart("t", "u", [Series("", points)], x_log=True, y_log=True)
    root = parsed(chart)
    assert root.get("aria-label") == (
        "t (u) by step: from 3 at 1 to 2 at 100 (2 at or below 0 not shown: the axis is logarithmic)"
    )
    assert len(curves(root)[0].split("L")) == 2
    nothing = Chart("t", "u", [Series("", [(0.0, 1.0)])], x_log=True)
    assert "no values yet" in texts(parsed(nothing))


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (3, 400, 9, [5, 10, 20, 50, 100, 200]),
        (1, 1000, 6, [1, 3, 10, 30, 100, 300]),  # 1000 makes seven; see below
        (1, 1e6, 4, [1, 1e2, 1e4, 1e6]),
        (1e14, 1e18, 5, [1e14, 1e15, 1e16, 1e17, 1e18]),
        (100, 140, 5, [100, 110, 120, 130, 140]),  # within one decade: round numbers
        (0.9, 1.6, 4, [1.0, 1.2, 1.4, 1.6]),
    ],
)
def test_logarithmic_ticks_are_round_numbers_inside_the_limits(low, high, most, expected):
    if (low, high) == (1, 1000):
        assert log_ticks(low, high, 7) == pytest.approx([1, 3, 10, 30, 100, 300, 1000])
        expected = [1, 10, 100, 1000]
    assert log_ticks(low, high, most) == pytest.approx(expected)


def test_any_two_limits_have_ticks_and_not_too_many():
    for power in range(-8, 20):
        for ratio in (1.001, 1.3, 2.2, 9, 150, 1e4, 1e9):
            for most in (3, 5, 8):
                ticks = log_ticks(10.0**power, 10.0**power * ratio, most)
                assert 1 <= len(ticks) <= most, (power, ratio, most)
                assert all(math.isfinite(tick) and tick > 0 for tick in ticks)
                assert ticks == sorted(ticks)


def test_large_and_small_numbers_are_written_short():
    chart = Chart(
        "t", "u", [Series("", [(1e14, 1e-5), (1e18, 1e-1)])], x_label="FLOPs", x_log=True, y_log=True,
        y_range=(1e-5, 1e-1),
    )  # fmt: skip
    found = texts(parsed(chart, width=548, height=310))
    assert {"1e14", "1e16", "1e18", "1e-5", "0.1"} <= set(found)
    linear = Chart("t", "u", [Series("", [(0.0, 1.0), (2e15, 2.0)])])
    assert {"0", "5e14", "1e15", "1.5e15", "2e15"} <= set(texts(parsed(linear, width=472)))
    tokens = Chart("t", "u", [Series("", [(1e3, 1.0), (2e7, 2.0)])], x_log=True)
    assert {"1K", "10K", "100K", "1M", "10M"} <= set(texts(parsed(tokens, width=548)))


def test_each_curve_has_its_colour_its_name_and_its_words():
    series = [Series(f"run <{hue}>", [(0.0, 1.0 + i), (9.0, 2.0)], hue=hue) for i, hue in enumerate(HUES)]
    for width, height in ((548, 310), (350, 320)):
        root = parsed(Chart("t", "u", series), width=width, height=height)
        groups = [e for e in root.iter("g") if e.get("data-name")]
        assert [(g.get("class"), g.get("data-name")) for g in groups] == [(hue, f"run <{hue}>") for hue in HUES]
        assert [t for t in texts(root) if t.startswith("run")] == [f"run <{hue}>" for hue in HUES]
        inside = [e for e in root.iter("text") if e.text.startswith("run")]
        assert all(float(e.get("x")) + 7 * len(e.text) < width for e in inside)
        # The rows of the legend lie between the title and the plot.
        (plot,) = [e for e in root.iter("svg") if e.get("class") == "plot"] or [
            e for e in root.iter("{http://www.w3.org/2000/svg}svg") if e.get("class") == "plot"
        ]
        assert 24 < float(inside[0].get("y")) <= float(inside[-1].get("y")) < float(plot.get("y"))
    assert "run <amber> from 2 at 0 to 2 at 9; run <teal> from 3" in root.get("aria-label")


def test_a_very_long_name_is_cut_in_the_legend_and_whole_for_the_pointer():
    chart = Chart("t", "u", [Series("n" * 300, [(0.0, 1.0), (1.0, 2.0)], hue="teal")])
    root = parsed(chart, width=350, height=250)
    assert any(re.fullmatch("n{20,60}…", text) for text in texts(root))
    assert [g.get("data-name") for g in root.iter("g") if g.get("data-name")] == ["n" * 300]


def test_error_bars_that_reach_below_zero_end_at_the_axis():
    chart = Chart("t", "u", [Series("", [(1.0, 1.0), (2.0, 1.0)], "dots", [2.0, 0.5])], y_range=(0.1, 10.0), y_log=True)
    (first, _) = [e.get("d") for e in parsed(chart).iter("path") if e.get("class") == "error"]
    low, high = (float(n) for n in re.match(r"M0\.0,([\d.]+)V([\d.]+)", first).groups())
    assert low == 100.0
    assert high == pytest.approx(100 - 100 * math.log(30) / math.log(100), abs=0.06)
