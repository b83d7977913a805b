"""Claims of serve/watching.py: health says whether the model answers, and the counters what was asked."""

from __future__ import annotations

import json
import re

from firstlight.serve.watching import health
from tests.serve.helpers import Running, ScriptedEngine, scripted, scripted_service


def test_a_server_that_runs_is_healthy_and_one_whose_thread_is_gone_is_not() -> None:
    service = scripted_service(ScriptedEngine(lambda request: [65]))
    # Not started yet.
    assert health(service).status_code == 503
    with scripted(ScriptedEngine(lambda request: [65])) as server:
        reply = server.ask("/health")
        assert (reply.status, reply.json["status"]) == (200, "ok")
        server.service.worker.begin_shutdown()
        assert server.ask("/health").json["status"] == "shutting_down"
    gone = health(server.service)
    assert gone.status_code == 503
    assert json.loads(bytes(gone.body))["rows_active"] == 0


def test_a_step_that_hangs_is_seen() -> None:
    service = scripted_service(ScriptedEngine(lambda request: [65]))
    worker = service.worker
    worker._thread = type("Alive", (), {"is_alive": lambda self: True})()
    assert worker.is_healthy
    worker._busy_since_s = -1e9
    assert not worker.is_healthy


def test_requests_are_counted_by_their_route(server: Running) -> None:
    server.ask("/made/up/1")
    server.ask("/made/up/2")
    server.ask("/v1/models/tiny")
    reply = server.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    assert "made" not in text
    assert re.search(r'^firstlight_requests_total\{route="other",status="404"\} [2-9]', text, re.MULTILINE)
    assert re.search(
        r'^firstlight_requests_total\{route="/v1/models/\{model_id:path\}",status="200"\} ', text, re.MULTILINE
    )
