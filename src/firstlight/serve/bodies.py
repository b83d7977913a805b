"""Bodies of requests: bytes to JSON to checked values, with OpenAI's names and limits.

Fields that change nothing here are ignored, as OpenAI's own server ignores them; those that would change the answer and
that this server does not have are refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from firstlight.serve.errors import ApiError, bad_value, unsupported

MAX_STOPS = 4
MAX_CHOICES = 128
MAX_TOP = 20
"""OpenAI's limits."""

HUGE = 2**31 - 1


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class SamplingBody(BaseModel):
    """What both kinds of completion have in common. None stands for a field that was left out or null."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=HUGE)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=HUGE)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(SamplingBody):
    prompt: str | list[str] | list[int] | list[list[int]] = Field(union_mode="left_to_right")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None


class ChatBody(SamplingBody):
    messages: list[Any]
    max_completion_tokens: Annotated[int, Field(ge=1, le=HUGE)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    truncation: Literal["auto", "disabled"] | None = None


HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that would change the answer, with the values (besides null) that do not."""

WHY_NOT = {
    "tools": "the model calls its own Python calculator only",
    "functions": "the model calls its own Python calculator only",
    "response_format": "a small model cannot be held to a format",
    "suffix": "the model only continues text",
    "best_of": "use n and choose among the answers",
}

Body = TypeVar("Body", bound=BaseModel)


def parse_body(data: bytes, kind: type[Body]) -> Body:
    """Checked values of a request's body. Raises ApiError (400) that names the field."""
    values = parse_json(data)
    for name, allowed in HARMLESS.items():
        value = values.get(name)
        if value is not None and value not in allowed:
            raise unsupported(name, WHY_NOT.get(name, "leave it out"))
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        raise _first_mistake(error) from None
    stops = getattr(body, "stops", ())
    if len(stops) > MAX_STOPS:
        raise bad_value(f"stop has {len(stops)} strings; at most {MAX_STOPS} are possible", param="stop")
    return body


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object of a body. Raises ApiError (400) for anything else: NaN, half characters, no object, a bottomless pit."""
    try:
        values = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise bad_value(f"the body is not UTF-8: {error.reason} at byte {error.start}", code="invalid_json") from None
    except RecursionError:
        raise bad_value("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise bad_value(f"the body is not JSON: {error}"[:200], code="invalid_json") from None
    if not isinstance(values, dict):
        raise bad_value("the body is no JSON object", code="invalid_json")
    if b"\\u" in data:
        _check_unicode(values)
    return values


def _check_unicode(values: dict[str, Any]) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise bad_value("the body is nested too deeply", code="invalid_json") from None
    except UnicodeEncodeError as error:
        raise bad_value(
            f"the body has the lone surrogate {error.object[error.start]!a}, which is half of a character",
            code="invalid_json",
        ) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _first_mistake(error: ValidationError) -> ApiError:
    """The first thing that is wrong, in the union of a field the one that came closest."""
    mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [str(part) for part in mistake["loc"]]
    field = names[0] if names else None
    where = ".".join(name for name in names[:1] + [n for n in names[1:] if n.isdecimal()])
    if mistake["type"] == "missing":
        return bad_value(f"you must provide a {field}", param=field, code="missing_required_parameter")
    return bad_value(f"{where}: {mistake['msg']}", param=field, code="invalid_value")
