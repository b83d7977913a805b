"""The token viewer's routes, against ids that are written down here."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve.studio_run import make_run

from firstlight.serve.studio_tokens import MOST_BYTES, add_tokens

BOS, USER, USER_END, ASSISTANT, ASSISTANT_END = 261, 262, 263, 264, 265
PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = 266, 267, 268, 269


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    app = FastAPI()
    add_tokens(app, run_dir=make_run(tmp_path, "tiny"))
    return TestClient(app)


def test_a_text_as_tokens(client: TestClient) -> None:
    found = client.post("/api/tokenize", json={"text": "a the é\n"}).json()
    assert [(t["id"], t["text"], t["hex"], t["is_special"]) for t in found["tokens"]] == [
        (97, "a", "61", False),
        (258, "·the", "20 74 68 65", False),
        (32, "·", "20", False),
        (0xC3, "⟨C3⟩", "C3", False),
        (0xA9, "⟨A9⟩", "A9", False),
        (10, "↵", "0A", False),
    ]
    assert found["num_bytes"] == 9
    assert found["vocab_size"] == 270


def test_what_looks_like_a_special_token_is_text(client: TestClient) -> None:
    tokens = client.post("/api/tokenize", json={"text": "<|bos|>"}).json()["tokens"]
    assert [t["id"] for t in tokens] == list(b"<|bos|>")
    assert not any(t["is_special"] for t in tokens)


def test_a_conversation_with_its_mask(client: TestClient) -> None:
    parts = [{"type": "python", "text": "1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "3"}]
    messages = [{"role": "user", "content": "is"}, {"role": "assistant", "content": parts}]
    found = client.post("/api/render", json={"messages": messages}).json()
    assert [(t["id"], t["carries_loss"]) for t in found["tokens"]] == [
        (BOS, False), (USER, False), (259, False), (USER_END, False), (ASSISTANT, False),
        (PYTHON, True), (ord("1"), True), (PYTHON_END, True),
        (OUTPUT, False), (ord("2"), False), (OUTPUT_END, False),
        (ord("3"), True), (ASSISTANT_END, True),
    ]  # fmt: skip
    assert found["num_with_loss"] == 5
    assert found["tokens"][0] == {"id": BOS, "text": "<|bos|>", "hex": "", "is_special": True, "carries_loss": False}


@pytest.mark.parametrize(
    "messages", [[], "x", [{"role": "robot", "content": "x"}], [{"role": "assistant", "content": "x"}]]
)
def test_no_conversation_is_said_in_words(client: TestClient, messages: object) -> None:
    answer = client.post("/api/render", json={"messages": messages})
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) > 20


def test_limits_and_half_characters(client: TestClient) -> None:
    assert client.post("/api/tokenize", json={"text": "x" * MOST_BYTES}).status_code == 200
    assert client.post("/api/tokenize", json={"text": "x" * (MOST_BYTES + 1)}).status_code == 413
    assert client.post("/api/tokenize", json={"text": "é" * (MOST_BYTES // 2 + 1)}).status_code == 413
    long = [{"role": "user", "content": "x" * (MOST_BYTES + 1)}]
    assert client.post("/api/render", json={"messages": long}).status_code == 413
    headers = {"Content-Type": "application/json"}
    for path, body in (
        ("tokenize", rb'{"text": "\ud800"}'),
        ("render", rb'{"messages": [{"role": "user", "content": "\ud800"}]}'),
    ):
        answer = client.post(f"/api/{path}", content=body, headers=headers)
        assert answer.status_code == 400, answer.text
