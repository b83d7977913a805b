"""What every route needs: the model's words and limits, reading a body, and starting an answer."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from firstlight.infer.batch import Request, Tool
from firstlight.infer.chat import stop_ids
from firstlight.serve.answer import AnswerText
from firstlight.serve.bodies import SamplingBody, parse_body
from firstlight.serve.errors import ApiError
from firstlight.serve.generation import Generation
from firstlight.serve.meters import Meters
from firstlight.serve.worker import EngineWorker
from firstlight.tokens.bpe import Tokenizer

BODY_TIME_S = 30.0
ENCODED_ASIDE_CHARS = 20_000
"""Longer texts are tokenised outside of the event loop's thread."""

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. max_new_tokens: None is the model's context."""

    max_new_tokens: int | None = None
    time_limit_s: float = 600.0


@dataclass(frozen=True)
class Service:
    """One model that is served. warning: said with every chat answer (a base model has not learned to chat).

    context: tokens that the model reads at most. facts: shown in the list of models. make_tool: one row's calculator, or
    None where there is none.
    """

    model_id: str
    tokenizer: Tokenizer
    context: int
    worker: EngineWorker
    meters: Meters
    limits: Limits
    created_unix_s: float
    facts: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None
    make_tool: Callable[[], Tool] | None = None

    async def read(self, request: HttpRequest, kind: type[Body]) -> Body:
        """The checked body of a request. Raises ApiError: 400, 408."""
        return parse_body(await read_body(request), kind)

    def check_model(self, name: str | None) -> None:
        """Raise ApiError (404) for another model than the one that is here."""
        if name is not None and name != self.model_id:
            raise ApiError(
                404, f"The model {name[:100]!r} does not exist: here is {self.model_id!r}", "model", "model_not_found"
            )

    def max_new_tokens(self, asked: int | None) -> int:
        """Tokens that an answer may have: what was asked for, within the server's limit and the context."""
        return min(asked or self.context, self.limits.max_new_tokens or self.context, self.context)

    def requests(
        self,
        body: SamplingBody,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        num_top: int,
        ends: frozenset[int],
        tool: Callable[[], Tool] | None = None,
    ) -> list[Request]:
        """One request to the engine for each prompt and choice, in OpenAI's order."""
        seed = secrets.randbits(62) if body.seed is None else body.seed
        return [
            Request(
                tuple(prompt),
                max_new_tokens,
                temperature=1.0 if body.temperature is None else body.temperature,
                top_k=body.top_k or None,
                top_p=body.top_p,
                seed=choice_seed(seed, place),
                stop_ids=ends,
                num_top=num_top,
                tool=tool,
            )
            for place, prompt in enumerate(prompt for prompt in prompts for _ in range(body.n or 1))
        ]

    async def begin(
        self,
        requests: Sequence[Request],
        *,
        stops: Sequence[str],
        started_s: float,
        prefix_ids: Sequence[int] = (),
    ) -> Generation:
        """Start answering. Raises ApiError where the queue is full or the engine refuses."""
        answers = [AnswerText(self.tokenizer, stops=stops) for _ in requests]
        for answer in answers:
            answer.continue_after(prefix_ids)
        rows = await self.worker.open(requests)
        return Generation(
            rows,
            answers,
            worker=self.worker,
            meters=self.meters,
            started_s=started_s,
            time_limit_s=self.limits.time_limit_s,
        )

    def tool_after(self, prefix_ids: Sequence[int]) -> Callable[[], Tool] | None:
        """What makes a row's tool, which has seen the beginning of an answer that goes on.

        Calls that the beginning has closed are not run: the client says itself what they gave, and may send many.
        """
        make = self.make_tool
        if make is None or not prefix_ids:
            return make
        closes = self.tokenizer.special_ids["<|python_end|>"]
        last = max((place for place, token_id in enumerate(prefix_ids) if token_id == closes), default=-1)

        def replayed() -> Tool:
            tool = make()
            for token_id in prefix_ids[last + 1 :]:
                tool.after(token_id)
            return tool

        return replayed

    @property
    def chat_ends(self) -> frozenset[int]:
        return frozenset(stop_ids(self.tokenizer))

    @property
    def text_ends(self) -> frozenset[int]:
        """Any special token ends a plain text."""
        return frozenset(self.tokenizer.special_ids.values())


async def read_body(request: HttpRequest) -> bytes:
    """A request's body. Raises ApiError: 408 where it comes too slowly (the guard holds its size)."""
    try:
        async with asyncio.timeout(BODY_TIME_S):
            return await request.body()
    except TimeoutError:
        raise ApiError(
            408, f"the body did not come within {BODY_TIME_S:.0f} s", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(499, "the client left before its request was whole") from None


async def aside(num_chars: int, act: Callable[[], Result]) -> Result:
    """Do work on a text: here where it is short, in another thread where it would hold up all others."""
    return act() if num_chars < ENCODED_ASIDE_CHARS else await asyncio.to_thread(act)


def choice_seed(seed: int, place: int) -> int:
    """A seed for each choice of a request; the first has the request's own.

    >>> choice_seed(7, 0), choice_seed(7, 1) != choice_seed(7, 2)
    (7, True)
    """
    if place == 0:
        return seed & (2**63 - 1)
    digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def now_s() -> float:
    return time.monotonic()
