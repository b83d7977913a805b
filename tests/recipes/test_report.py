"""The report: complete, self-contained, escaped, readable by machines and by people who see no pictures."""

from __future__ import annotations

import html.parser
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from firstlight.errors import DataError
from firstlight.recipes.record import new_record, write_run
from firstlight.recipes.report import write_curve_svg, write_report
from firstlight.recipes.report_samples import samples_by_step, write_samples
from firstlight.recipes.report_svg import Chart, Series, draw_chart, nice_ticks, robust_top, smooth, thin
from firstlight.runtime.metrics import MetricsLog

EVIL = '<script>alert(1)</script> <img src="http://evil.example/x.png"> &amp; \u202e]]> \x00\x1b[31m \ud800'
VOID = {"meta", "br", "img", "link", "hr", "input", "wbr"}


class Page(html.parser.HTMLParser):
    """Reads a page strictly: each tag closes in order. Keeps tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def run_dir(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(300):
        values = {
            "loss_nats": math.nan if step == 120 else 3 + 6 * math.exp(-step / 40),
            "grad_norm": 50.0 if step == 7 else 0.5,
            "lr_multiplier": min(1.0, (step + 1) / 30),
            "step_time_s": 0.4,
            "tokens_per_s": 20000.0,
            "mfu": 0.5,
            "elapsed_s": 0.4 * (step + 1),
            "eta_s": 1.0,
            "epoch": 0,
            "tokens_seen": 8192 * (step + 1),
        }
        log.write("train", step, values)
        if step % 50 == 0:
            log.write("eval", step, {"val_bpb": 2.0 + 1 / (1 + step), "val_bpb_stderr": 0.01})
    log.write("event", 120, {"what": f"update refused: {EVIL}"})
    log.write("sample", 100, {"samples": [{"prompt": "early", "completion": "old words"}]})
    log.write(
        "sample", 300, {"samples": [{"prompt": "The", "completion": EVIL}, {"prompt": "A", "completion": "new words"}]}
    )
    record = new_record(
        "d4-test",
        status="done",
        config={"depth": 4, "vocab_size": 8192, "model": {"n_embd": 256}, "note": EVIL, "unset": None},
        hardware={"cpu": "a CPU", "num_threads": 2, "memory_bytes": 8 * 2**30},
        notes=(f"note {EVIL}",),
        data_hash="d" * 64,
        final={"val_bpb": 1.8765, "val_bpb_stderr": 0.0123, "steps": 300, "tokens": 2457600},
        cost={"elapsed_s": 123.0},
    )
    write_run(tmp_path, record)
    return tmp_path


def test_the_report_is_well_formed_and_says_the_results(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path.read_text())
    for expected in (
        "d4-test",
        "done",
        "1.877",
        "± 0.012",
        "300",
        "2.46M",
        "2 min 03 s",
        "d" * 64,
        "n_embd",
        "8.0 GiB",
    ):
        assert expected in page.text, expected
    assert sorted(p.name for p in run_dir.iterdir()) == ["metrics.jsonl", "report.html", "run.json"]


def test_what_a_run_says_is_shown_and_never_run(run_dir):
    text = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(text)
    assert page.text.count("<script>alert(1)</script>") >= 4  # sample, event, note, setting: as text
    assert len(page.named("script")) == 1  # our own
    assert page.named("img") == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


def test_the_report_asks_nothing_of_the_network(run_dir):
    text = write_report(run_dir).read_text()
    page = Page(text)
    fetching = {"src", "href", "action", "srcset", "data", "poster", "xlink:href"}
    assert [(tag, attrs) for tag, attrs in page.tags if fetching & attrs.keys()] == []
    assert "@import" not in text
    # All that is left of "http" is the escaped sample and the rule that forbids requests.
    assert "http" not in text.replace("http-equiv", "").replace("http://evil.example", "")
    assert not re.search(r"url\((?!#)", text)
    (policy,) = [attrs["content"] for attrs in page.named("meta") if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")


def test_each_curve_is_there_with_units_and_words_for_those_who_do_not_see_it(run_dir):
    page = Page(write_report(run_dir).read_text())
    labels = {attrs["aria-label"] for attrs in page.named("svg") if attrs.get("role") == "img"}
    assert len(labels) == 6
    for beginning in (
        "Training loss (nats per token) by step: from 9 at 0 to 3.0",
        "Validation (bits per byte, ± 1 standard error) by step: from 3 at 0 to 2.004 at 250",
        "Learning rate (multiplier, 0 to 1)",
        "Gradient norm (before clipping)",
        "Speed (tokens per second)",
        "MFU (% of the machine's peak) by step: from 50",
    ):
        assert any(label.startswith(beginning) for label in labels), (beginning, labels)
    assert "guessing: ln 8,192 = 9.01" in page.text


def test_it_fits_a_phone_paper_and_the_dark(run_dir):
    text = write_report(run_dir).read_text()
    assert 'name="viewport" content="width=device-width,initial-scale=1"' in text
    for query in ("@media print", "prefers-color-scheme:dark", "max-width:760px"):
        assert query in text
    assert len(text) < 400_000


def test_newest_samples_come_first_and_older_ones_are_kept(run_dir):
    text = Page(write_report(run_dir).read_text()).text
    assert 0 < text.index("What it says at step 300") < text.index("new words") < text.index("old words")


def test_scores_on_tasks_have_a_curve_where_there_are_some(run_dir):
    assert "at most 4 examples a task" not in write_report(run_dir).read_text()
    log = MetricsLog(run_dir / "metrics.jsonl")
    for step, mean in ((5, -0.02), (10, 0.0125)):
        row = {"core": mean, "mean_centered": mean, "mean_centered_stderr": 0.01, "max_per_task": 4}
        log.write("core", step, row)
    # One that was cut has no score.
    log.write("core", 15, {"cut": "by its budget: 3 of 88 examples", "max_per_task": 4})
    log.close()
    page = write_report(run_dir).read_text()
    assert ">CORE<" in page
    assert "at most 4 examples a task" in page
    assert "0.0125" in page or "0.013" in page


def test_refused_updates_are_marked_on_the_loss_curve(run_dir):
    assert "update refused at step 120" in Page(write_report(run_dir).read_text()).text


def test_a_run_that_has_just_begun_or_lost_lines_has_a_report(tmp_path):
    write_run(tmp_path, new_record("fresh"))
    page = Page(write_report(tmp_path).read_text())
    assert "no values yet" in page.text
    assert "No score yet" in page.text
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 0, "loss_nats": 9.0}\n???\n{"kind": "eval", "step": 0}\n{"ki'
    )
    page = Page(write_report(tmp_path).read_text())
    assert "metrics.jsonl:2" in page.text


def test_without_a_record_there_is_no_report(tmp_path):
    with pytest.raises(DataError, match=r"run\.json is missing"):
        write_report(tmp_path)


def test_the_picture_is_standalone_svg(run_dir, tmp_path):
    out = write_curve_svg(run_dir, tmp_path / "picture.svg")
    root = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox") == "0 0 1200 480"
    text = "".join(root.itertext())
    for expected in ("d4-test", "1.877", "Training loss", "Validation", "prefers-color-scheme"):
        assert expected in text, expected
    assert "http" not in out.read_text().replace("http://www.w3.org/2000/svg", "")


def test_samples_md_holds_every_step_and_no_text_can_break_out_of_its_block(run_dir):
    MetricsLog(run_dir / "metrics.jsonl").write(
        "sample", 200, {"samples": [{"prompt": "x", "completion": "```\n# not a head\n````"}]}
    )
    text = write_samples(run_dir).read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^## Step (\d+)$", text, re.MULTILINE)] == [300, 200, 100]
    assert "`````text\nx│```\n# not a head\n````\n`````" in text


def test_a_sample_made_again_after_a_resume_counts_once():
    rows = [
        {"kind": "sample", "step": 5, "samples": [{"prompt": "a", "completion": word}]} for word in ("first", "again")
    ]
    assert samples_by_step(rows) == [(5, [("a", "again")])]


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [(0, 1500, 5, [0, 500, 1000, 1500]), (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1.62, 2.21, 6, [1.7, 1.8, 1.9, 2.0,
    2.1, 2.2]),
     (-1, 1, 3, [-1, 0, 1]), (0, 7, 4, [0, 2, 4, 6]), (3e9, 9e9, 4, [4e9, 6e9, 8e9])],
)  # fmt: skip
def test_ticks_are_round_numbers_inside_the_limits(low, high, most, expected):
    assert nice_ticks(low, high, most) == pytest.approx(expected)


def test_thinning_keeps_every_spike():
    points = [(float(x), 1.0) for x in range(10_000)]
    points[1234], points[9999] = (1234.0, 99.0), (9999.0, -5.0)
    kept = thin(points, num_buckets=50)
    assert len(kept) <= 100
    assert (1234.0, 99.0) in kept
    assert (9999.0, -5.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_smoothing_keeps_a_straight_line_where_it_was_and_ends_in_a_mean():
    line = [(float(x), 2.0 * x) for x in range(50)]
    smoothed = smooth(line, half_width=3)
    assert [y for _, y in smoothed[:46]] == pytest.approx([y for _, y in line[:46]])
    assert smoothed[-1] == (49.0, pytest.approx((98 + 96 + 94 + 92) / 4))
    assert smooth([]) == []


def test_one_outlier_does_not_flatten_a_curve():
    assert robust_top([1.0] * 999 + [1000.0]) == pytest.approx(1.15)
    assert robust_top([5.0]) == pytest.approx(5.25)


@pytest.mark.parametrize(
    "points", [[], [(0.0, 1.0)], [(5.0, 2.0), (6.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, 1e-9), (1.0, 1e12)]]
)
def test_every_chart_is_well_formed_xml(points):
    chart = Chart("a < b", "x & y", [Series("raw", points, "faint"), Series("smooth", points)])
    for width, height in ((548, 310), (350, 250)):
        root = ElementTree.fromstring(draw_chart(chart, width=width, height=height))
        numbers = re.findall(r"nan|inf", ElementTree.tostring(root, encoding="unicode"))
        assert numbers == []


def test_points_are_drawn_where_they_belong():
    chart = Chart("t", "u", [Series("", [(0.0, 0.0), (50.0, 5.0), (100.0, 10.0)])], y_range=(0.0, 10.0))
    root = ElementTree.fromstring(draw_chart(chart, width=272, height=184))  # a plot of 200 x 100
    (path,) = [e.get("d") for e in root.iter("path") if e.get("class") == "curve"]
    assert path == "M0.0,100.0L100.0,50.0L200.0,0.0"
