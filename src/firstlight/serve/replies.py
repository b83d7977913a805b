"""From a running generation to an HTTP answer: one JSON object, or a stream of server-sent events.

(`fastapi.sse` serves generators whose status is 200 before they begin; here a full queue or a wrong prompt must still be able
to say 429 or 400, and a client that leaves must free its rows at once.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from firstlight.serve.answer import Piece
from firstlight.serve.errors import ApiError
from firstlight.serve.generation import Generation, Growth

SILENCE_S = 15.0
"""After so long without a token a comment is sent, so that nothing between here and the client gives up."""


class Reply(Protocol):
    """The shape of one interface's answers."""

    def opening(self, place: int) -> dict[str, Any] | None:
        """The first chunk of a choice."""
        ...

    def chunk(self, place: int, pieces: Sequence[Piece], finish_reason: str | None) -> dict[str, Any] | None:
        """One chunk, or None where there is nothing to see yet."""
        ...

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any] | None:
        """The last chunk, where it was asked for."""
        ...

    def whole(
        self, pieces: Sequence[Sequence[Piece]], reasons: Sequence[str], completion_tokens: int
    ) -> dict[str, Any]:
        """Everything at once."""
        ...


async def answer(
    request: HttpRequest, generation: Generation, reply: Reply, *, is_stream: bool, headers: Mapping[str, str]
) -> Response:
    """The answer to a request, as it comes or when it is whole. The generation is closed in the end, whatever happens."""
    if is_stream:
        return EventStream(generation, reply, headers=headers)
    return await _whole(request, generation, reply, headers=headers)


async def _whole(request: HttpRequest, generation: Generation, reply: Reply, *, headers: Mapping[str, str]) -> Response:
    pieces: list[list[Piece]] = [[] for _ in generation.answers]

    async def collect() -> None:
        async for growth in generation.steps():
            for grown in growth:
                pieces[grown.place] += grown.pieces

    work = asyncio.ensure_future(collect())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client left")
        await work
    finally:
        work.cancel()
        gone.cancel()
        generation.close()
    reasons = [answer.finish_reason or "length" for answer in generation.answers]
    body = reply.whole(pieces, reasons, generation.num_tokens)
    if generation.ended_early:
        body["firstlight_ended_early"] = generation.ended_early
    return JsonResponse(body, headers=headers)


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class JsonResponse(Response):
    """Strict JSON in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        # A lone surrogate (from a client, in an error's words) becomes its escape, which JSON has.
        return encode(content).encode("utf-8", "backslashreplace")


class EventStream(StreamingResponse):
    """Chunks as server-sent events, ended by ``[DONE]``. Its rows are freed when it ends, also when the client leaves."""

    def __init__(self, generation: Generation, reply: Reply, *, headers: Mapping[str, str]) -> None:
        self._generation = generation
        self._reply = reply
        super().__init__(
            self._events(),
            media_type="text/event-stream",
            # X-Accel-Buffering: nginx would otherwise collect the stream.
            headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()

    async def _events(self) -> AsyncIterator[str]:
        generation, reply = self._generation, self._reply
        opening = [reply.opening(place) for place in range(len(generation.answers))]
        yield "".join(_event(chunk) for chunk in opening if chunk is not None)
        try:
            async for growth in generation.steps(silence_s=SILENCE_S):
                yield "".join(map(_event, self._chunks(growth))) if growth else ": still here\n\n"
        except ApiError as error:
            yield _event(error.to_dict())
            return
        last = reply.usage_chunk(generation.num_tokens)
        yield ("" if last is None else _event(last)) + "data: [DONE]\n\n"

    def _chunks(self, growth: Sequence[Growth]) -> list[dict[str, Any]]:
        found = []
        for grown in growth:
            answer = self._generation.answers[grown.place]
            chunk = self._reply.chunk(grown.place, grown.pieces, None) if grown.pieces else None
            if chunk is not None:
                found.append(chunk)
            if grown.is_last:
                chunk = self._reply.chunk(grown.place, (), answer.finish_reason)
                assert chunk is not None
                if self._generation.ended_early:
                    chunk["firstlight_ended_early"] = self._generation.ended_early
                found.append(chunk)
        return found


def _event(chunk: Mapping[str, Any]) -> str:
    return f"data: {encode(chunk)}\n\n"


def encode(value: Any) -> str:
    """Strict JSON on one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
