"""One API request while it is answered: its rows' tokens as pieces of text, within its time, counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from firstlight.infer.batch import Token
from firstlight.serve.answer import AnswerText, Piece
from firstlight.serve.meters import Meters
from firstlight.serve.worker import Ended, EngineWorker, Rows


@dataclass
class Growth:
    """What one token added to one answer. is_last: it is over now."""

    place: int
    pieces: list[Piece]
    is_last: bool


class Generation:
    """The answers to one request. Must be closed (`close`), which frees the rows that are still open.

    ended_early: why answers were ended before their time: ``time_limit`` or ``shutdown``; None where they were not.
    """

    def __init__(
        self,
        rows: Rows,
        answers: Sequence[AnswerText],
        *,
        worker: EngineWorker,
        meters: Meters,
        started_s: float,
        time_limit_s: float,
    ) -> None:
        self.answers = list(answers)
        self.ended_early: str | None = None
        self._rows = rows
        self._worker = worker
        self._meters = meters
        self._ends_s = started_s + time_limit_s
        self._last_s = [started_s] * len(answers)

    @property
    def is_over(self) -> bool:
        return all(answer.is_over for answer in self.answers)

    @property
    def num_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self.answers)

    def close(self) -> None:
        """Free the rows. The client may have left: then this is what stops the work for it."""
        if not self.is_over:
            self._meters.cancelled.add()
        self._worker.close(self._rows)

    async def steps(self, *, silence_s: float = float("inf")) -> AsyncIterator[list[Growth]]:
        """What came since the last time, until all answers are over. After ``silence_s`` without a token: an empty list.

        Raises ApiError where the model failed.
        """
        events = self._rows.events
        while not self.is_over:
            wait_s = min(silence_s, self._ends_s - time.monotonic())
            try:
                # Not `wait_for`: in Python 3.11 that can lose a cancellation which comes together with an event.
                async with asyncio.timeout(max(wait_s, 0.0)):
                    found = [await events.get()]
            except TimeoutError:
                yield self._end("time_limit") if time.monotonic() >= self._ends_s else []
                continue
            while not events.empty():
                found.append(events.get_nowait())
            growth = []
            for event in found:
                if isinstance(event, Ended):
                    if event.error is not None:
                        raise event.error
                    growth += self._end(event.reason)
                elif not self.answers[event[0]].is_over:
                    growth.append(self._grow(*event))
            yield growth

    def _grow(self, place: int, token: Token) -> Growth:
        answer = self.answers[place]
        now_s = time.monotonic()
        histogram = self._meters.first_token_s if answer.num_tokens == 0 else self._meters.token_s
        histogram.observe(now_s - self._last_s[place])
        self._last_s[place] = now_s
        self._meters.completion_tokens.add()
        pieces = answer.push(token)
        if answer.is_over:
            self._worker.close_row(self._rows, place)
        return Growth(place, pieces, answer.is_over)

    def _end(self, reason: str) -> list[Growth]:
        """End what is open as it stands; the client gets what there is."""
        self.ended_early = reason
        growth = []
        for place, answer in enumerate(self.answers):
            if not answer.is_over:
                growth.append(Growth(place, answer.end("length"), True))
                self._worker.close_row(self._rows, place)
        return growth
