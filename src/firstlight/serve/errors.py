"""Errors as an OpenAI client reads them: ``{"error": {"message", "type", "param", "code"}}`` with the right HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


@dataclass
class ApiError(Exception):
    """An answer that is an error. param: the field of the body that is wrong. code: a name for programs."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_value(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A request whose body says something that cannot be."""
    return ApiError(400, message, param, code)


def unsupported(param: str, why: str) -> ApiError:
    """A field of OpenAI's interface that would change the answer, and that this server does not have."""
    return ApiError(400, f"{param} is not supported: {why}", param, "unsupported_parameter")


def context_too_long(num_tokens: int, context: int, *, param: str) -> ApiError:
    """OpenAI's refusal of a prompt that the model's context cannot hold."""
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens. However, your prompt has {num_tokens} tokens: "
        "please shorten it"
        + (', or send "truncation": "auto" to drop the oldest turns.' if param == "messages" else "."),
        param,
        "context_length_exceeded",
    )


def too_busy(num_open: int) -> ApiError:
    """The queue is full."""
    return ApiError(
        429,
        f"the server is busy: {num_open} answers are being written or wait; try again",
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def shutting_down() -> ApiError:
    """The server ends and takes nothing new."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})


def engine_failed(why: str) -> ApiError:
    """The model's thread could not go on."""
    return ApiError(500, f"the model failed: {why}", code="engine_failed")
