"""Claims of serve/errors.py: every error has OpenAI's shape, and a type that its status means."""

from __future__ import annotations

import pytest

from firstlight.serve.errors import ApiError, context_too_long, shutting_down, too_busy, unsupported


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"), (418, "invalid_request_error"),
     (429, "rate_limit_error"), (500, "server_error"), (599, "server_error")],
)  # fmt: skip
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert ApiError(status, "m", "p", "c").to_dict() == {
        "error": {"message": "m", "type": kind, "param": "p", "code": "c"}
    }


def test_refusals_say_what_to_do() -> None:
    assert "truncation" in context_too_long(9, 5, param="messages").message
    assert "truncation" not in context_too_long(9, 5, param="prompt").message
    assert too_busy(3).headers["Retry-After"] == "1"
    assert shutting_down().status == 503
    assert unsupported("tools", "why").message == "tools is not supported: why"
