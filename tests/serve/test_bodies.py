"""Claims of serve/bodies.py: what a body may say, and which field an error names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from firstlight.serve.bodies import ChatBody, CompletionBody, parse_body
from firstlight.serve.errors import ApiError

TEXT = {"prompt": "a"}
CHAT = {"messages": [{"role": "user", "content": "a"}]}


def refusal(data: bytes, kind: type = CompletionBody) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_body(data, kind)
    assert caught.value.status == 400
    assert len(caught.value.message) < 500
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b"\xff\xfe{}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "\\u0041": ' + b"[" * 900 + b"]" * 900 + b'"}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_in_unicode_is_refused(data: bytes) -> None:
    assert refusal(data).code == "invalid_json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 129), ("n", 1.5), ("n", "1"), ("n", True), ("n", []),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", 1e400),
        ("top_p", 0), ("top_p", 1.01), ("top_p", -1), ("top_k", -1), ("top_k", 1e3), ("top_k", 10**30),
        ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", 10**12), ("max_tokens", True),
        ("seed", 1.5), ("seed", "x"), ("stream", "yes"), ("stream", 1),
        ("stop", ""), ("stop", [""]), ("stop", ["a"] * 5), ("stop", 5), ("stop", [1]), ("stop", {}),
        ("stream_options", 5), ("stream_options", {"include_usage": "x"}),
        ("model", 5), ("logprobs", True), ("logprobs", 21), ("logprobs", -1), ("echo", 1),
        ("prompt", None), ("prompt", 5), ("prompt", {}), ("prompt", ["a", 1]), ("prompt", [1.5]), ("prompt", [[1], "a"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    data = json.dumps(TEXT | {field: value}).replace("Infinity", "1e400").encode()
    error = refusal(data)
    assert error.param == field
    assert error.message.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", None), ("messages", "a"), ("messages", {}), ("max_completion_tokens", 0), ("logprobs", 2),
        ("top_logprobs", 21), ("top_logprobs", True), ("truncation", "left"),
    ],
)  # fmt: skip
def test_a_wrong_value_in_a_chat_is_refused_too(field: str, value: Any) -> None:
    assert refusal(json.dumps(CHAT | {field: value}).encode(), ChatBody).param == field


def test_a_missing_field_is_named() -> None:
    error = refusal(b"{}")
    assert (error.param, error.code) == ("prompt", "missing_required_parameter")
    assert refusal(b"{}", ChatBody).param == "messages"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}), ("frequency_penalty", 0.5), ("presence_penalty", -1), ("suffix", "x"), ("best_of", 3),
        ("functions", [{}]), ("audio", {}), ("modalities", ["text", "audio"]),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_and_is_not_there_is_refused(field: str, value: Any) -> None:
    error = refusal(json.dumps(TEXT | {field: value}).encode())
    assert (error.param, error.code) == (field, "unsupported_parameter")


def test_what_changes_nothing_is_ignored() -> None:
    harmless = {
        "user": "me", "store": True, "metadata": {"a": 1}, "service_tier": "auto", "parallel_tool_calls": True, "tools": [],
        "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "frequency_penalty": 0.0,
        "presence_penalty": None, "best_of": 1, "unheard_of": [1, 2],
    }  # fmt: skip
    body = parse_body(json.dumps(TEXT | harmless).encode(), CompletionBody)
    assert body.prompt == "a"


def test_null_is_as_if_it_was_left_out() -> None:
    fields = dict.fromkeys(
        ["n", "seed", "stop", "temperature", "top_p", "max_tokens", "stream", "stream_options", "model"]
    )
    body = parse_body(json.dumps(TEXT | fields).encode(), CompletionBody)
    assert body.n is None
    assert body.stops == ()
    assert not body.with_usage


def test_values_come_as_they_were_sent() -> None:
    sent = {"n": 2, "temperature": 1, "stop": ["a", "b"], "seed": -5, "stream_options": {"include_usage": True}}
    body = parse_body(json.dumps({"prompt": [[1, 2], [3]]} | sent).encode(), CompletionBody)
    assert (body.n, body.temperature, body.stops, body.seed, body.with_usage) == (2, 1.0, ("a", "b"), -5, True)
    assert body.prompt == [[1, 2], [3]]
    assert parse_body(b'{"prompt": "\\ud83d\\ude00"}', CompletionBody).prompt == "😀"
