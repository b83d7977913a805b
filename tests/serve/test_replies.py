"""Claims of serve/replies.py: a client that leaves frees its rows at once; what goes wrong midway is said."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import urlsplit

import openai
import pytest

from firstlight.serve.replies import encode
from firstlight.serve.service import Limits
from tests.serve.helpers import Running, ScriptedEngine, scripted

ENDLESS = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**6}


def endless() -> ScriptedEngine:
    """It goes on until it is cancelled: the context of the service is said to be large."""
    return ScriptedEngine(lambda request: [65], step_s=0.002)


def test_a_client_that_closes_its_stream_frees_the_row() -> None:
    with scripted(endless(), context=10**7) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="tiny", **ENDLESS, stream=True)
        for _, chunk in zip(range(5), stream, strict=False):
            assert chunk.choices[0].finish_reason is None
        assert server.metric("firstlight_rows_active") == 1
        stream.close()
        server.until("firstlight_rows_active", 0)
        assert server.metric("firstlight_rows_open") == 0
        assert server.metric("firstlight_cancelled_total") == 1


def test_a_client_that_leaves_before_the_answer_is_whole_frees_the_row() -> None:
    with scripted(endless(), context=10**7) as server:
        connection = raw(server, "/v1/chat/completions", ENDLESS | {"n": 2})
        server.until("firstlight_rows_active", 2)
        connection.close()
        server.until("firstlight_rows_active", 0)
        assert server.ask("/health").status == 200


def raw(server: Running, path: str, body: dict) -> socket.socket:
    """A request whose answer is not waited for."""
    address = urlsplit(server.url)
    data = json.dumps(body).encode()
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    return connection


def test_a_model_that_fails_midway_is_said_in_the_stream_and_as_a_500() -> None:
    engine = endless()
    with scripted(engine, context=10**7) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="tiny", **ENDLESS, stream=True)
        next(iter(stream))
        engine.failure = ValueError("broken")
        with pytest.raises(openai.APIError, match="the model failed: broken"):
            list(stream)
        reply = server.ask("/v1/chat/completions", ENDLESS)
        assert (reply.status, reply.error["type"]) == (500, "server_error")
        engine.failure = None
        assert server.ask("/v1/chat/completions", ENDLESS | {"max_tokens": 2}).status == 200


def test_an_answer_that_takes_too_long_ends_as_it_stands() -> None:
    with scripted(endless(), context=10**7, limits=Limits(time_limit_s=0.3)) as server:
        reply = server.ask("/v1/chat/completions", ENDLESS).json
        assert reply["firstlight_ended_early"] == "time_limit"
        assert reply["choices"][0]["finish_reason"] == "length"
        assert set(reply["choices"][0]["message"]["content"]) == {"A"}
        stream = server.ask("/v1/chat/completions", ENDLESS | {"stream": True}).body.decode()
        last = json.loads(stream.split("data: ")[-2])
        assert last["firstlight_ended_early"] == "time_limit"
        assert stream.endswith("data: [DONE]\n\n")
        server.until("firstlight_rows_active", 0)


def test_what_is_streamed_is_an_event_stream_that_no_proxy_keeps() -> None:
    engine = ScriptedEngine(lambda request: [65])
    with scripted(engine) as server:
        reply = server.ask("/v1/chat/completions", ENDLESS | {"stream": True, "max_tokens": 1})
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-accel-buffering"] == "no"
        address = urlsplit(server.url)
        # The connection can be used again.
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        for _ in range(2):
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": True, "max_tokens": 1}))
            assert connection.getresponse().read().endswith(b"[DONE]\n\n")
        connection.close()


def test_json_is_strict() -> None:
    assert encode({"a": "é"}) == '{"a":"é"}'
    with pytest.raises(ValueError, match="Out of range"):
        encode({"a": float("nan")})
