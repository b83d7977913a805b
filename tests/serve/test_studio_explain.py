"""The walk of the served run over HTTP."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve.studio_run import make_run

from firstlight.serve import studio_explain
from firstlight.serve.studio_explain import add_explain


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    app = FastAPI()
    add_explain(app, run_dir=make_run(tmp_path, "tiny", with_model=True))
    return TestClient(app)


def test_a_text_is_walked_once_and_its_page_can_do_nothing(client: TestClient) -> None:
    threads = torch.get_num_threads()
    text = "the <script>alert(1)</script> wo"
    address = client.post("/api/explain", json={"text": text}).json()["page"]
    assert re.fullmatch(r"/studio/walks/[\w-]{24}", address)
    page = client.get(address)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script-src" not in policy
    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    assert "tiny, explained" in page.text
    assert "<script" not in page.text
    assert client.post("/api/explain", json={"text": text}).json()["page"] == address
    assert client.post("/api/explain", json={"text": text, "max_tokens": 5}).json()["page"] != address
    assert torch.get_num_threads() == threads
    rule = "@media {}{{:root{{"
    assert rule.format("(prefers-color-scheme:dark)") in page.text
    assert rule.format("all") in client.get(f"{address}?scheme=dark").text
    assert rule.format("not all") in client.get(f"{address}?scheme=light").text
    assert client.get(f"{address}?scheme=red").status_code == 422


def test_what_cannot_be_walked_is_said_in_words(client: TestClient) -> None:
    for body, status, words in (
        ({"text": ""}, 400, "empty"),
        ({"text": "a", "max_tokens": 1}, 400, "out of range"),
        ({"text": "x" * 4001}, 413, "4,000"),
        ({}, 422, "text"),
    ):
        answer = client.post("/api/explain", json=body)
        assert answer.status_code == status
        assert words in answer.text
    half = client.post("/api/explain", content=rb'{"text": "\ud800"}', headers={"Content-Type": "application/json"})
    assert half.status_code == 400
    assert client.get("/studio/walks/unknown").status_code == 404


def test_only_the_newest_pages_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        studio_explain.Walks, "_make", lambda self, text, max_tokens: made.append(text) or f"page of {text}"
    )
    walks = studio_explain.Walks(tmp_path)
    addresses = {text: walks.address(text, 8) for text in "abcdef"}
    assert walks.address("a", 8) == addresses["a"]
    walks.address("g", 8)
    # "b" was used longest ago.
    assert walks.page(addresses["b"]) is None
    assert walks.page(addresses["a"]) == "page of a"
    assert made == list("abcdefg")
    assert client_defaults(tmp_path) == {"text", "max_tokens", "most_tokens"}


def client_defaults(folder: Path) -> set[str]:
    app = FastAPI()
    add_explain(app, run_dir=folder)
    return set(TestClient(app).get("/api/explain").json())
