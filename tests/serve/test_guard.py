"""Claims of serve/guard.py: who may ask, from where, how much, and what a browser is told."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import openai
import pytest

from firstlight.serve.guard import LOOPBACK_HOSTS, host_name, is_loopback
from tests.serve.helpers import Running, ScriptedEngine, scripted

KEY = "sk-secret-Schlüssel".encode("ascii", "ignore").decode()


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    engine = ScriptedEngine(lambda request: [65])
    with scripted(engine, api_key=KEY, hosts=LOOPBACK_HOSTS, origins=("https://friend.example",)) as found:
        yield found


def asked(
    server: Running, path: str = "/v1/models", *, key: str | None = KEY, **headers: str
) -> tuple[int, str | None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["Authorization"] = f"Bearer {key}"
    reply = server.ask(path, headers=named, method="GET")
    return reply.status, reply.error["code"] if reply.status >= 400 else None


def test_without_the_right_key_nothing_is_told(locked: Running) -> None:
    assert asked(locked) == (200, None)
    for key in (None, "", "wrong", KEY[:-1], KEY + "x", "\xff"):
        for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/api/studio", "/v1/nothing"):
            assert asked(locked, path, key=key) == (401, "invalid_api_key")
    reply = locked.ask("/v1/chat/completions", {"messages": []}, headers={"Authorization": f"Basic {KEY}"})
    assert reply.status == 401
    assert reply.error["type"] == "authentication_error"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert asked(locked, "/health", key=None) == (200, None)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="no", max_retries=0).models.list()
    assert openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0).models.list().data[0].id == "tiny"


def test_a_name_that_was_made_to_point_here_is_refused(locked: Running) -> None:
    port = urlsplit(locked.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", "[::1]:9", "localhost."):
        assert asked(locked, Host=host) == (200, None)
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "", "localhost.evil.example", "[::2]", "127.0.0.2"):
        assert asked(locked, Host=host) == (403, "host_not_allowed")


def test_pages_of_other_sites_are_refused(locked: Running) -> None:
    own = locked.url
    for origin in (own, "https://friend.example"):
        assert asked(locked, Origin=origin) == (200, None)
    for origin in ("https://evil.example", "null", "http://localhost:1", "http://[", own + ".evil.example", ""):
        assert asked(locked, Origin=origin) == (403, "origin_not_allowed")


def test_cors_is_for_friends_only(locked: Running, server: Running) -> None:
    reply = locked.ask("/v1/models", headers={"Origin": "https://friend.example", "Authorization": f"Bearer {KEY}"})
    assert reply.headers["access-control-allow-origin"] == "https://friend.example"
    preflight = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    assert locked.ask("/v1/chat/completions", headers=preflight, method="OPTIONS").status == 200
    assert "access-control-allow-origin" not in server.ask("/v1/models", headers={"Origin": server.url}).headers


def test_every_answer_tells_a_browser_to_be_careful(server: Running) -> None:
    for path in ("/v1/models", "/nothing", "/health", "/metrics"):
        headers = server.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src" in headers["content-security-policy"]
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert "server" not in headers
    assert server.ask("/v1/models").headers["cache-control"] == "no-store"


def test_a_body_that_is_too_large_is_refused(server: Running) -> None:
    for size in (1 << 20, (1 << 20) + 1, 3 << 20):
        body = b'{"prompt": "' + b"x" * (size - 14) + b'"}'
        reply = server.ask("/v1/completions", body)
        # The first just fits, and is longer than the context.
        expected = "context_length_exceeded" if size == 1 << 20 else "request_too_large"
        assert reply.error["code"] == expected
        assert reply.status == (400 if size == 1 << 20 else 413)


def test_the_length_that_is_announced_is_not_trusted(server: Running) -> None:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    # In chunks, so that no length is announced at all.
    connection.request("POST", "/v1/completions", iter([b"x" * 65536] * 40), encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["type"] == "invalid_request_error"
    connection.close()
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_names_of_hosts() -> None:
    assert [host_name(h) for h in ("a:1", "[::1]:1", "[::1]", "A.", "")] == ["a", "::1", "::1", "a", ""]
    assert [h for h in ("localhost", "127.9.9.9", "::1", "0.0.0.0", "::", "10.0.0.1", "x") if is_loopback(h)] == [
        "localhost", "127.9.9.9", "::1",
    ]  # fmt: skip
