"""The page: self-contained, escaped, whole also where fits are missing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from firstlight.recipes.scale import report
from firstlight.recipes.scale.fit import BudgetFit
from firstlight.recipes.scale.interval import Interval

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open, f"</{tag}> without its start"
        assert self.open.pop() == tag


def assert_whole(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().replace("nanochat", "")
    assert not re.search(r"(src|href)=", page), "nothing is fetched"
    assert "default-src 'none'" in page


def test_a_whole_study_is_drawn(make_results) -> None:
    results = make_results()
    page = report.render_page(results)
    assert_whole(page)
    for cell in results.study.cells:
        assert cell.run in page
    assert "Same compute, other sizes" in page
    assert "Best size of each budget" in page
    assert "E + A / N^alpha" in page
    # Four plots, each wide and narrow.
    assert page.count('<svg class="chart') == 8


@pytest.mark.parametrize("num_missing", [2, 5, 7, 9])
def test_a_part_of_a_study_is_drawn_too(make_results, num_missing) -> None:
    names = [f"mine-d{d}-c{c}" for c in (3, 2, 1) for d in (3, 2, 1)][:num_missing]
    page = report.render_page(make_results(missing=names))
    assert_whole(page)
    assert f"{9 - num_missing} of 9 cells" in page
    assert "out of memory &lt;b&gt;" in page


def test_names_are_escaped(make_results) -> None:
    results = make_results()
    hostile = replace(results, study=replace(results.study, name="<script>x</script>", notes=("<i>",)))
    page = report.render_page(hostile)
    assert "<script>" not in page
    assert "<i>" not in page


def test_the_parabola_is_drawn_where_its_numbers_say() -> None:
    none = Interval(None, None, None)
    fit = BudgetFit(1, 1e12, none, none, none, none, curve=(2.0, 0.0, 0.5), centre=math.log(1e6), edge="")
    points = report.parabola_points(fit, 1e5, 1e7)
    assert points[0][1] == pytest.approx(2.0 + 0.5 * math.log(10) ** 2)
    assert min(y for _, y in points) == pytest.approx(2.0, abs=1e-3)


def test_the_page_is_written_in_one_move(make_results, tmp_path) -> None:
    path = report.write_page(tmp_path / "report.html", make_results())
    assert path.read_text().endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
