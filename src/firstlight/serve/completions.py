"""``POST /v1/completions``: a text, or token ids, and what comes after."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from firstlight.serve import shapes
from firstlight.serve.answer import Piece
from firstlight.serve.bodies import CompletionBody
from firstlight.serve.errors import bad_value, context_too_long, unsupported
from firstlight.serve.replies import answer
from firstlight.serve.service import Service, aside, now_s

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

MAX_PROMPTS = 128


@dataclass
class TextReply:
    """Shapes of the completions interface. echoes: the prompt's text for each choice, or empty ones."""

    service: Service
    body: CompletionBody
    prompt_tokens: int
    echoes: Sequence[str]
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        tokenizer = self.service.tokenizer
        self._logprobs = [shapes.CompletionLogprobs(tokenizer, offset=len(echo)) for echo in self.echoes]

    def opening(self, place: int) -> dict[str, Any] | None:
        echo = self.echoes[place]
        return self._object([self._choice(place, echo, None, None)]) if echo else None

    def chunk(self, place: int, pieces: Sequence[Piece], finish_reason: str | None) -> dict[str, Any] | None:
        """One chunk, or None for half a character that nobody asked the probability of."""
        text = shapes.content(pieces)
        logprobs = self._taken(place, pieces)
        if not text and finish_reason is None and not (logprobs and logprobs["tokens"]):
            return None
        return self._object([self._choice(place, text, logprobs, finish_reason)])

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any] | None:
        if not self.body.with_usage:
            return None
        return self._object([]) | {"usage": shapes.usage(self.prompt_tokens, completion_tokens)}

    def whole(
        self, pieces: Sequence[Sequence[Piece]], reasons: Sequence[str], completion_tokens: int
    ) -> dict[str, Any]:
        choices = [
            self._choice(place, echo + shapes.content(own), self._taken(place, own), reason)
            for place, (echo, own, reason) in enumerate(zip(self.echoes, pieces, reasons, strict=True))
        ]
        return self._object(choices) | {"usage": shapes.usage(self.prompt_tokens, completion_tokens)}

    def _taken(self, place: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        return None if self.body.logprobs is None else self._logprobs[place].take(pieces)

    def _choice(self, place: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        found = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.service.model_id,
            "choices": choices,
        }
        return found | {"usage": None} if self.body.with_usage else found


async def complete(service: Service, request: HttpRequest) -> Response:
    """Answer one request to the completions interface."""
    started_s = now_s()
    body = await service.read(request, CompletionBody)
    service.check_model(body.model)
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "the probabilities of a prompt are not computed; leave out echo or logprobs")
    prompts = await _prompt_ids(service, body)
    tokenizer = service.tokenizer
    echoes = [_shown(tokenizer.decode(ids), given) for ids, given in prompts] if body.echo else [""] * len(prompts)
    ids = [ids for ids, _ in prompts]
    generation = await service.begin(
        service.requests(
            body,
            ids,
            max_new_tokens=service.max_new_tokens(body.max_tokens or DEFAULT_MAX_TOKENS),
            num_top=min(body.logprobs or 0, tokenizer.vocab_size),
            ends=service.text_ends,
        ),
        stops=body.stops,
        started_s=started_s,
    )
    n = body.n or 1
    num_prompt_tokens = sum(map(len, ids))
    service.meters.prompt_tokens.add(amount=num_prompt_tokens)
    reply = TextReply(service, body, num_prompt_tokens, [echo for echo in echoes for _ in range(n)])
    return await answer(request, generation, reply, is_stream=bool(body.stream), headers={})


def _shown(decoded: str, given: str | None) -> str:
    return decoded if given is None else given


async def _prompt_ids(service: Service, body: CompletionBody) -> list[tuple[list[int], str | None]]:
    """(ids, text) of each prompt. A text gets BOS in front; ids are taken as they are, and have no text."""
    given = body.prompt
    prompts: Sequence[str | list[int]]
    if isinstance(given, str):
        prompts = [given]
    elif given and isinstance(given[0], int):
        prompts = [list(given)]  # pyrefly: ignore
    else:
        prompts = list(given)  # pyrefly: ignore
    if not prompts:
        raise bad_value("prompt is an empty list", param="prompt")
    if len(prompts) > MAX_PROMPTS:
        raise bad_value(f"{len(prompts)} prompts are too many: at most {MAX_PROMPTS}", param="prompt")
    found = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = await aside(len(prompt), lambda text=prompt: service.tokenizer.encode(text))
            ids = [service.tokenizer.bos_id, *ids]
        else:
            ids = prompt
            outside = [i for i in ids if not 0 <= i < service.tokenizer.vocab_size]
            if outside:
                raise bad_value(
                    f"prompt: the id {outside[0]} is outside the vocabulary of {service.tokenizer.vocab_size}",
                    param="prompt",
                )
            if not ids:
                raise bad_value("prompt: a list of ids is empty", param="prompt")
        if len(ids) > service.context:
            raise context_too_long(len(ids), service.context, param="prompt")
        found.append((ids, prompt if isinstance(prompt, str) else None))
    return found
