"""JSON answers of the studio's routes."""

from __future__ import annotations

import json

import pytest

from firstlight.serve.studio_json import answer, problem


def test_half_a_character_is_an_escape() -> None:
    assert answer({"text": "\ud800é"}).body == b'{"text":"\\ud800\\u00e9"}'


def test_no_number_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        answer({"loss": float("nan")})


def test_a_problem_has_the_servers_shape() -> None:
    refused = problem("the text is empty", hint="give one", status_code=413)
    assert refused.status_code == 413
    assert refused.headers["cache-control"] == "no-store"
    error = json.loads(refused.body)["error"]
    assert (error["message"], error["type"]) == ("the text is empty: give one", "invalid_request_error")
