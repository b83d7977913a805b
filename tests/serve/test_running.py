"""Claims of serve/running.py: a port that is taken is said, and the end of a server is a good one."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from firstlight.errors import ConfigError
from firstlight.serve.running import open_socket, url_of
from tests.serve.helpers import Reply, ScriptedEngine, scripted


def test_a_port_in_use_is_a_users_mistake_with_a_way_out() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} is in use") as caught:
            open_socket("127.0.0.1", port)
        assert "--port" in caught.value.hint


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 300, ""])
def test_an_address_that_is_not_here_is_a_users_mistake(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        open_socket(host, 0)


def test_the_url_is_one_that_a_browser_takes() -> None:
    with open_socket("0.0.0.0", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        try:
            listener = open_socket("::1", 0)
        except ConfigError:
            pytest.skip("this machine has no IPv6")
        with listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_running_answers_get_a_short_time_at_the_end_and_end_as_they_stand() -> None:
    engine = ScriptedEngine(lambda request: [65], step_s=0.01)
    replies: list[Reply] = []
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**6, "stream": True}
    with scripted(engine, context=10**7, grace_s=0.5) as server:
        ask = threading.Thread(target=lambda: replies.append(server.ask("/v1/chat/completions", body)))
        ask.start()
        server.until("firstlight_rows_active", 1)
        started_s = time.monotonic()
        server.server.should_exit = True
        ask.join(60)
        assert time.monotonic() - started_s >= 0.5
    events = [line[6:] for line in replies[0].body.decode().splitlines() if line]
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert last["firstlight_ended_early"] == "shutdown"
    assert last["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_is_short_ends_by_itself_at_the_end() -> None:
    engine = ScriptedEngine(lambda request: [65], step_s=0.02)
    replies: list[Reply] = []
    with scripted(engine, grace_s=30.0) as server:
        ask = threading.Thread(
            target=lambda: replies.append(server.ask("/v1/completions", {"prompt": "a", "max_tokens": 30}))
        )
        ask.start()
        server.until("firstlight_rows_active", 1)
        server.server.should_exit = True
        ask.join(60)
    assert replies[0].json["choices"][0]["text"] == "A" * 30
    assert "firstlight_ended_early" not in replies[0].json
