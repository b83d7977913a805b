"""The studio's page and files, and what they promise a browser."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve.studio_run import make_run

from firstlight.errors import ConfigError
from firstlight.serve.studio import PAGE_DIR, add_studio, static_files

OWN = [path for path in sorted(PAGE_DIR.rglob("*")) if path.is_file() and "vendor" not in path.parts]


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    make_run(tmp_path, "tiny", final={"val_bpb": 1.5})
    app = FastAPI()
    add_studio(app, runs_dir=tmp_path, run_name="tiny")
    return TestClient(app)


def test_the_page_and_every_file_that_it_names(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    named = set(re.findall(r'(?:src|href)="(/[^"#]+)"', page.text))
    for path in OWN:
        if path.suffix == ".js":
            named |= {f"/studio/static/{name}" for name in re.findall(r'from "\./([^"]+)"', path.read_text())}
    assert len(named) > 12
    for name in named:
        answer = client.get(name)
        assert answer.status_code == 200, name
        assert answer.headers["x-content-type-options"] == "nosniff"
    served = {f"/studio/static/{name}" for name in static_files(PAGE_DIR)} - {"/studio/static/index.html"}
    assert served == named, "a file that nothing uses, or one that is missing"


@pytest.mark.parametrize(
    "name",
    ["../studio.py", "%2e%2e/studio.py", "..%2fstudio.py", "/etc/passwd", "vendor/uplot", "", "vendor/uplot/LICENSE"],
)
def test_no_other_file_is_given(client: TestClient, name: str) -> None:
    assert client.get(f"/studio/static/{name}").status_code == 404


def test_which_run_is_served(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/api/studio").json() == {
        "run": "tiny", "recipe": "base", "checkpoint": None, "context": 64, "val_bpb": 1.5,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no run 'tony'"):
        add_studio(FastAPI(), runs_dir=tmp_path, run_name="tony")


def test_the_page_can_reach_no_other_host_and_sets_no_html() -> None:
    """By reading it: the browser's test sees it happen."""
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\(|new Function|setAttribute\(\"on"
    for path in OWN:
        text = path.read_text()
        links = set(re.findall(r"https?://[^\s\"'<)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not links, path.name
        assert not re.search(forbidden, text), path.name
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text), "the policy forbids it"


def test_vendored_files_carry_their_licence() -> None:
    assert "Permission is hereby granted" in (PAGE_DIR / "vendor" / "uplot" / "LICENSE").read_text()
    rows = re.findall(r"\| (uplot/\S+) \|.*\| ([0-9a-f]{64}) \|", (PAGE_DIR / "vendor" / "README.md").read_text())
    vendored = {p.relative_to(PAGE_DIR / "vendor").as_posix() for p in (PAGE_DIR / "vendor" / "uplot").iterdir()}
    assert {name for name, _ in rows} == vendored - {"uplot/LICENSE"}
    for name, sha256 in rows:
        assert hashlib.sha256((PAGE_DIR / "vendor" / name).read_bytes()).hexdigest() == sha256
