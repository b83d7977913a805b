"""``POST /v1/chat/completions``: a conversation, and the assistant's next turn."""

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
from firstlight.serve.bodies import ChatBody
from firstlight.serve.errors import bad_value
from firstlight.serve.messages import chat_prompt
from firstlight.serve.replies import answer
from firstlight.serve.service import Service, aside, now_s


@dataclass
class ChatReply:
    """Shapes of the chat interface."""

    service: Service
    body: ChatBody
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, place: int) -> dict[str, Any] | None:
        return self._chunk([self._delta(place, {"role": "assistant", "content": ""}, None, None)])

    def chunk(self, place: int, pieces: Sequence[Piece], finish_reason: str | None) -> dict[str, Any] | None:
        """One chunk, or None for half a character that nobody asked the probability of."""
        if finish_reason is not None:
            return self._chunk([self._delta(place, {}, None, finish_reason)])
        delta = shapes.chat_delta(pieces)
        logprobs = self._logprobs(pieces)
        if not delta["content"] and len(delta) == 1 and not (logprobs and logprobs["content"]):
            return None
        return self._chunk([self._delta(place, delta, logprobs, None)])

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any] | None:
        if not self.body.with_usage:
            return None
        return self._chunk([]) | {"usage": shapes.usage(self.prompt_tokens, completion_tokens)}

    def whole(
        self, pieces: Sequence[Sequence[Piece]], reasons: Sequence[str], completion_tokens: int
    ) -> dict[str, Any]:
        choices = [
            {
                "index": place,
                "message": shapes.chat_message(own),
                "logprobs": self._logprobs(own),
                "finish_reason": reason,
            }
            for place, (own, reason) in enumerate(zip(pieces, reasons, strict=True))
        ]
        return self._object("chat.completion", choices) | {"usage": shapes.usage(self.prompt_tokens, completion_tokens)}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        return shapes.chat_logprobs(pieces, self.service.tokenizer) if self.body.logprobs else None

    def _delta(
        self, place: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        found = self._object("chat.completion.chunk", choices)
        return found | {"usage": None} if self.body.with_usage else found

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.service.model_id,
            "system_fingerprint": None,
            "choices": choices,
        }


async def chat(service: Service, request: HttpRequest) -> Response:
    """Answer one request to the chat interface."""
    started_s = now_s()
    body = await service.read(request, ChatBody)
    service.check_model(body.model)
    if body.top_logprobs and not body.logprobs:
        raise bad_value("top_logprobs needs logprobs: true", param="top_logprobs")
    max_new_tokens = service.max_new_tokens(body.max_completion_tokens or body.max_tokens)
    prompt = await aside(
        len(str(body.messages)),
        lambda: chat_prompt(
            body.messages,
            service.tokenizer,
            context=service.context,
            # Room that trimming leaves; an answer may be as long as the context lets it.
            max_new_tokens=min(max_new_tokens, max(1, service.context // 4)),
            is_trimmed=body.truncation == "auto",
        ),
    )
    generation = await service.begin(
        service.requests(
            body,
            [prompt.ids],
            max_new_tokens=max_new_tokens,
            num_top=min(body.top_logprobs or 0, service.tokenizer.vocab_size),
            ends=service.chat_ends,
            tool=service.tool_after(prompt.prefix_ids),
        ),
        stops=body.stops,
        started_s=started_s,
        prefix_ids=prompt.prefix_ids,
    )
    service.meters.prompt_tokens.add(amount=len(prompt.ids))
    headers = {}
    if body.truncation == "auto":
        headers["X-Firstlight-Dropped-Turns"] = str(prompt.num_dropped)
    if service.warning:
        headers["X-Firstlight-Warning"] = service.warning
    return await answer(
        request, generation, ChatReply(service, body, len(prompt.ids)), is_stream=bool(body.stream), headers=headers
    )
