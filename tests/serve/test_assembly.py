"""Claims of serve/assembly.py: what a run on disk becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import ConfigError
from tests.serve.helpers import Running, load, running, write_run_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(write_run_folder(tmp_path_factory.mktemp("base"), "plain", recipe="base"))


def test_a_base_run_has_no_calculator_and_says_what_it_is(base: Any, server: Running) -> None:
    with running(base) as plain:
        assert plain.service.make_tool is None
        reply = plain.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2})
        assert "base model" in reply.headers["x-firstlight-warning"]
        # Without the studio its routes for tokens are there all the same, with errors of the same shape.
        assert plain.ask("/").status == 404
        assert plain.ask("/api/tokenize", {"text": "the"}).status == 200
        assert plain.ask("/api/tokenize", {"text": 5}).status == 400
        assert plain.ask("/api/tokenize", b"{").error["message"]
        assert plain.ask("/api/tokenize", {"text": "\ud800"}).status == 400
        assert plain.ask("/api/tokenize", {"text": "x" * (1 << 20)}).status == 413
    assert server.service.make_tool is not None
    assert server.service.warning is None


def test_the_studio_is_at_the_root(base: Any) -> None:
    with running(base, studio=True) as found:
        page = found.ask("/")
        assert page.status == 200
        assert page.headers["content-type"].startswith("text/html")
        assert found.ask("/api/studio").json["run"] == "plain"
        assert found.ask("/", headers={"Host": "evil.example"}).status == 403


def test_damaged_weights_are_seen_before_the_first_client(tmp_path: Path) -> None:
    loaded = load(write_run_folder(tmp_path, "nan", recipe="sft"))
    loaded.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="not finite"), running(loaded):
        pass
