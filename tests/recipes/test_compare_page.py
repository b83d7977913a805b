"""The page of a comparison: complete, well-formed, escaped, without requests, and with a choice of axes."""

from __future__ import annotations

import re

import pytest
from comparable import make_run
from recipes.test_report import Page

from firstlight.recipes.compare import compare_runs
from firstlight.recipes.compare_page import render_comparison, write_comparison

EVIL = '<script>alert(1)</script><img src="http://evil.example/x.png">'


@pytest.fixture
def comparison(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path, f"base-s{seed}", seed=seed, bpb=2.0)
        make_run(tmp_path, f"slow-s{seed}", seed=seed + 5, bpb=2.05, plan_lr=0.005, settings={"note": EVIL})
    make_run(tmp_path, "other", val_hash="9" * 64)
    words = ["base-s1", "slow-s1", "base-s2", "slow-s2", "other"]
    return compare_runs(words, tmp_path, usd_per_hour=2.0)


def test_it_says_the_verdicts_the_numbers_and_what_differs(comparison, tmp_path):
    path = write_comparison(comparison, tmp_path / "compare.html")
    page = Page(path.read_text(encoding="utf-8"))
    for expected in ("base-s{1,2} is better by", "No verdict on base-s{1,2} and other", "matrix lr", "0.005",
                     "different documents", "US dollars", "2 min 00 s", "to reach base-s{1,2}"):  # fmt: skip
        assert expected in page.text, expected


def test_each_axis_has_both_charts_and_a_button_and_one_is_chosen(comparison):
    page = Page(render_comparison(comparison))
    buttons = [attrs for attrs in page.named("input") if attrs["type"] == "radio"]
    assert [one["id"] for one in buttons] == [f"axis-{axis}" for axis in ("tokens", "steps", "flops", "minutes", "usd")]
    assert [one["id"] for one in buttons if "checked" in one] == ["axis-tokens"]
    labels = [attrs["aria-label"] for attrs in page.named("svg") if attrs.get("role") == "img"]
    assert len(labels) == 5 * 2 * 2  # each wide and narrow
    assert sum("by FLOPs" in label for label in labels) == 4
    assert all("base-s{1,2} from" in label for label in labels)


def test_what_a_run_says_is_never_run_and_nothing_is_fetched(comparison):
    text = render_comparison(comparison)
    page = Page(text)
    assert len(page.named("script")) == 1
    assert page.named("img") == []
    assert EVIL in page.text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text
    assert len(text) < 600_000


def test_runs_without_metrics_have_a_page(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        (make_run(tmp_path, name, plan_lr=lr) / "metrics.jsonl").unlink()
    page = Page(render_comparison(compare_runs(["a", "b"], tmp_path)))
    assert "no values yet" in page.text or "No curves" in page.text
