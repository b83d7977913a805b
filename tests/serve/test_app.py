"""Claims of serve/app.py: many clients at once each get what they would alone, and no request makes the server fail."""

from __future__ import annotations

import copy
import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from firstlight.infer.engine import generate
from firstlight.serve import shapes
from firstlight.tokens.conversation import Message, render_prompt
from tests.serve.helpers import Running, running


def test_32_streams_at_once_each_get_their_solo_answer(client: Any, loaded: Any) -> None:
    tokenizer = loaded.tokenizer
    texts = [f"question {i} " + "?" * (i % 7) for i in range(32)]
    lengths = [8 + 5 * (i % 6) for i in range(32)]
    names = ("assistant_end", "bos", "user_start", "user_end", "assistant_start")
    ends = {tokenizer.special_ids[f"<|{name}|>"] for name in names}

    def streamed(place: int) -> list[int]:
        stream = own.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": texts[place]}], max_tokens=lengths[place], temperature=0,
            stream=True, logprobs=True,
        )  # fmt: skip
        choices = [chunk.choices[0] for chunk in stream]
        return [entry.id for choice in choices if choice.logprobs for entry in choice.logprobs.content]

    with running(loaded, tools="off") as plain, ThreadPoolExecutor(32) as pool:
        own = client.with_options(base_url=f"{plain.url}/v1")
        found = list(pool.map(streamed, range(32)))
        assert plain.metric("firstlight_rows_open") == 0
    for text, length, ids in zip(texts, lengths, found, strict=True):
        prompt = render_prompt([Message.of("user", text)], tokenizer)
        alone = [i for (i,) in generate(loaded.model, prompt, max_new_tokens=length, temperature=0.0, stop_ids=ends)]
        assert ids == [i for i in alone if i not in ends]


def test_models_are_listed(client: Any, loaded: Any) -> None:
    (entry,) = client.models.list().data
    assert (entry.id, entry.owned_by) == ("tiny", "firstlight")
    assert client.models.retrieve("tiny") == entry
    assert entry.firstlight["context"] == loaded.model.config.max_seq_len


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/v1/models/..%2F..%2Fetc", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_openais_shape(
    server: Running, method: str, path: str, status: int, code: str
) -> None:
    reply = server.ask(path, method=method)
    assert reply.status == status
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.error["code"] == code


VALID: list[tuple[str, Any]] = [
    ("/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": 2, "logprobs": 2, "stop": ["x", "yz"], "seed": 1}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "n": 2, "echo": True, "stream": True}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 5}),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "max_tokens": 2, "logprobs": True, "top_logprobs": 2, "truncation": "auto", "n": 2, "tools": [],
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "prefix": True, "ids": [1]}],
            "max_completion_tokens": 2, "stream": True, "stream_options": {"include_usage": True}, "user": "me",
        },
    ),
    ("/api/tokenize", {"text": "größe 😀"}),
    ("/api/render", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
]  # fmt: skip

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 10**300, 0.5, -0.0, 1e308, 5e-324, "", "x", "tiny", "\x00", "😀",
    "\ufeff", "x" * 3000, [], {}, [[]], [{}], [None], {"": None}, [1, "a", None], {"type": "text", "text": "x"},
    {"role": "user", "content": "x"}, [{"role": "assistant", "content": "x", "prefix": True}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "prefix": True, "ids": [0, 5, 268]}],
    [{"role": "user", "content": [{"type": "python", "text": "1"}]}], ["a", "b", "c", "d"], [1, 2, 3], [[1], [2]],
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += [(value, key), *places(inner)]
    return found


def fuzzed(rng: random.Random) -> tuple[str, bytes]:
    """A valid request with something done to it."""
    path, body = copy.deepcopy(rng.choice(VALID))
    for _ in range(rng.choice((0, 1, 1, 2))):
        inside = places(body)
        if not inside:
            break
        container, key = rng.choice(inside)
        if rng.random() < 0.2 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    if rng.random() < 0.2:
        field = rng.choice(["n", "seed", "max_tokens", "temperature", "logit_bias", "stop", "tools", "response_format"])
        body[field] = rng.choice(ODD)
    data = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = rng.random()
    if kind < 0.2:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    elif kind < 0.24:
        data = data[: rng.randrange(len(data))]
    elif kind < 0.28:
        data = rng.randbytes(rng.randrange(200))
    elif kind < 0.32:
        data = data.replace(b'"x"', rng.choice([b'"\\ud800"', b'"\\udfff\\ud800"', b"NaN", b"1e999", b"[" * 2000]))
    return path, data


def test_500_odd_requests_never_make_the_server_fail(server: Running) -> None:
    rng = random.Random(2)
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    counts: dict[int, int] = {}
    for _ in range(500):
        path, data = fuzzed(rng)
        connection.request("POST", path, data, {"Content-Type": rng.choice(["application/json", "text/plain", "x"])})
        response = connection.getresponse()
        body = response.read()
        counts[response.status] = counts.get(response.status, 0) + 1
        assert response.status in (200, 400, 404, 413), (path, data, response.status, body)
        if response.status != 200:
            assert json.loads(body)["error"]["message"], (path, data)
        else:
            assert b'"error"' not in body[:20], (path, data, body)
    connection.close()
    # Both kinds were really met.
    assert counts[200] > 50
    assert counts[400] > 100
    server.until("firstlight_rows_open", 0)
    assert server.metric("firstlight_engine_failures") == 0
    assert server.ask("/health").status == 200


def test_an_entry_of_the_list_has_openais_fields() -> None:
    assert shapes.model_entry("a", 5.7, {}) == {
        "id": "a", "object": "model", "created": 5, "owned_by": "firstlight", "firstlight": {},
    }  # fmt: skip
