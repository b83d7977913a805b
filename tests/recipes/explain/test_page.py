"""Claims of recipes/explain/page.py: one whole, quiet, safe file."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from firstlight.errors import ConfigError
from firstlight.recipes.explain.collect import explain_depth
from firstlight.recipes.explain.page import about, render_page, tiles, write_page
from firstlight.runtime.context import open_runtime

VOID = {"meta", "img", "br", "rect", "path", "circle", "line"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'& </section></body> javascript:x. é漢\x1b\u202e"


class Checker(HTMLParser):
    """Every element is closed in order; notes tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value[1:] for name, value in attrs if name == "href" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"{tag} closes something else"


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not checker.tags & {"script", "iframe", "link", "object", "form", "input"}
    for name, value in checker.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value is not None
            assert value.startswith(("data:image/png;base64,", "#"))
    assert set(checker.links) <= set(checker.ids)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "url(" not in page.replace("url(#sun)", "")
    assert "default-src 'none'" in page
    # Every < begins a tag: none came from a text.
    assert re.findall(r"<(?![a-zA-Z/!])", page) == []
    return checker


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
def test_a_runs_page_is_whole_quiet_and_safe(facts_of_run, preset: str) -> None:
    facts = facts_of_run(preset, text=HOSTILE)
    page = render_page(facts)
    checker = checked(page)
    assert checker.ids.count("attention") == 1
    assert len(page.encode()) < 3_000_000
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count('<section class="stage"') == 12


def test_nothing_that_a_run_or_a_token_says_becomes_markup(facts_of_run) -> None:
    facts = facts_of_run("modern")
    bad = "<script>alert(1)</script><img src=x onerror='y'>\""
    piece = replace(facts.pieces[0], text=bad)
    guesses = tuple(replace(guess, text=bad) for guess in facts.walk.positions[0].top)
    positions = tuple(replace(p, input=piece, target=piece, top=guesses) for p in facts.walk.positions)
    batch = replace(facts.batch, words=dict.fromkeys(facts.batch.words, bad), packing=bad)
    page = render_page(
        replace(
            facts, title=bad, preset=bad, tokenizer=bad, val_bpb=1.0, val_of=bad, notes=(bad,), batch=batch, bos=piece,
            pieces=(piece,) * len(facts.pieces), walk=replace(facts.walk, positions=positions),
        )
    )  # fmt: skip
    checked(page)
    assert page.count("&lt;script&gt;") > 10


def test_a_depths_pages_say_that_they_are_untrained(tmp_path: Path) -> None:
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        small, large = explain_depth(1, runtime, preset="portable"), explain_depth(20, runtime)
    checked(render_page(small))
    page = render_page(large)
    checked(page)
    assert "No model was built" in page
    assert page.count('<section class="stage"') == 8
    assert len(page.encode()) < 3_000_000
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).split()


def test_the_head_of_the_page(facts_of_run) -> None:
    facts = facts_of_run("modern")
    assert about(facts)[:2] == ["preset modern", "depth 3"]
    assert "step 30" in about(facts)
    assert f"{facts.walk.score.bits_per_byte:.3f}" in tiles(facts)


def test_it_is_written_in_one_move_or_refused(facts_of_run, tmp_path: Path) -> None:
    facts = facts_of_run("classic")
    path = write_page(facts, tmp_path / "page.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(facts, tmp_path / "no" / "page.html")
