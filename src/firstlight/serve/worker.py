"""The thread that owns the model: takes requests from the event loop, steps all rows together, hands tokens back.

The batch engine is not made for several threads, so only this one touches it. Two queues are the whole bridge: orders go
in through a thread's queue, which the thread reads between two steps; tokens come out through the event loop's own
(`call_soon_threadsafe`), once per step for all rows.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from firstlight.errors import FirstlightError
from firstlight.infer.batch import Request, Token
from firstlight.serve.errors import ApiError, bad_value, engine_failed, shutting_down, too_busy

HUNG_AFTER_S = 60.0
"""A step takes milliseconds to seconds; one that takes longer than this is reported as a server that does not answer."""


class Engine(Protocol):
    """What is used of `infer.batch.BatchEngine`."""

    @property
    def num_active(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    def submit(self, request: Request) -> int: ...
    def cancel(self, handle: int) -> None: ...
    def step(self) -> list[Token]: ...


@dataclass(frozen=True)
class Ended:
    """In place of a token: no more will come. reason: ``shutdown``, or the error that ended the rows."""

    reason: str
    error: ApiError | None = None


Event = tuple[int, Token] | Ended


@dataclass(eq=False)
class Rows:
    """The rows of one API request. events: (place of the row, token) as they come; read by the request's coroutine."""

    requests: tuple[Request, ...]
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    is_open: list[bool] = field(default_factory=list)
    # Only the engine's thread uses this one.
    handles: list[int] = field(default_factory=list)


class EngineWorker:
    """Runs an engine in a thread of its own. All methods are for the event loop's thread.

    max_open: rows that may be active or waiting, together. num_active, num_waiting: of the engine, after its last step.
    num_steps, num_failures: steps so far, and steps that raised.
    """

    def __init__(self, engine: Engine, *, max_open: int) -> None:
        self.max_open = max_open
        self.num_open = 0
        self.num_active = 0
        self.num_waiting = 0
        self.num_steps = 0
        self.num_failures = 0
        self.is_closing = False
        self._engine = engine
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: set[Rows] = set()
        self._rows_of: dict[int, tuple[Rows, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="firstlight-engine", daemon=True)
        self._busy_since_s: float | None = None

    # The event loop's side.

    def start(self) -> None:
        """Start the thread; tokens come to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether the thread lives and its present step has not taken too long."""
        since_s = self._busy_since_s
        return self._thread.is_alive() and (since_s is None or time.monotonic() - since_s < HUNG_AFTER_S)

    async def open(self, requests: Sequence[Request]) -> Rows:
        """Hand rows to the engine. Raises ApiError: 503 at the end, 429 where the queue is full, 400 for what cannot be."""
        if self.is_closing:
            raise shutting_down()
        if not self._thread.is_alive():
            raise engine_failed("its thread has ended")
        if len(requests) > self.max_open:
            raise bad_value(
                f"{len(requests)} answers in one request are more than this server's {self.max_open}", param="n"
            )
        if self.num_open + len(requests) > self.max_open:
            raise too_busy(self.num_open)
        rows = Rows(tuple(requests), is_open=[True] * len(requests))
        self._open.add(rows)
        self.num_open += len(requests)
        accepted = asyncio.get_running_loop().create_future()
        self._orders.put(partial(self._submit, rows, accepted))
        try:
            await accepted
        except BaseException:
            self.close(rows)
            raise
        return rows

    def close_row(self, rows: Rows, place: int) -> None:
        """The row needs no more tokens: its place is free for others from the next step on."""
        if rows.is_open[place]:
            self._finish(rows, place)
            self._orders.put(partial(self._cancel, rows, place))

    def close(self, rows: Rows) -> None:
        """All of a request's rows that are still open."""
        for place in range(len(rows.requests)):
            self.close_row(rows, place)

    def begin_shutdown(self) -> None:
        """Take nothing new; what runs goes on."""
        self.is_closing = True

    def end_all(self) -> None:
        """Tell every open request that nothing more will come."""
        for rows in self._open:
            rows.events.put_nowait(Ended("shutdown"))

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the thread after its present step."""
        self.is_closing = True
        if self._thread.is_alive():
            self._orders.put(None)
            self._thread.join(timeout_s)

    def _finish(self, rows: Rows, place: int) -> None:
        rows.is_open[place] = False
        self.num_open -= 1
        if not any(rows.is_open):
            self._open.discard(rows)

    def _deliver(self, tokens: list[tuple[Rows, int, Token]]) -> None:
        for rows, place, token in tokens:
            if not rows.is_open[place]:
                continue
            if token.finish_reason is not None:
                self._finish(rows, place)
            rows.events.put_nowait((place, token))

    def _fail(self, error: ApiError) -> None:
        for rows in list(self._open):
            rows.events.put_nowait(Ended("error", error))

    # The engine's side.

    def _run(self) -> None:
        try:
            while self._follow_orders():
                self._attempt(self._step)
                self.num_active, self.num_waiting = self._engine.num_active, self._engine.num_waiting
        finally:
            self._tell(self._fail, engine_failed("its thread has ended"))

    def _follow_orders(self) -> bool:
        """Do all that was asked for; with no row to step, wait until there is one. False: stop."""
        while True:
            is_idle = not self._rows_of
            self._busy_since_s = None if is_idle else time.monotonic()
            try:
                order = self._orders.get(block=is_idle)
            except queue.Empty:
                return True
            if order is None:
                return False
            self._attempt(order)

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.num_failures += 1
            self._give_up(error)

    def _step(self) -> None:
        if not self._rows_of:
            return
        found = []
        for token in self._engine.step():
            rows, place = self._rows_of[token.handle]
            if token.finish_reason is not None:
                del self._rows_of[token.handle]
            found.append((rows, place, token))
        self.num_steps += 1
        self._tell(self._deliver, found)

    def _give_up(self, error: Exception) -> None:
        """A step failed: no row can be trusted to go on, but the next ones may."""
        for handle in list(self._rows_of):
            self._engine.cancel(handle)
        self._rows_of.clear()
        self._tell(self._fail, engine_failed(str(error) or type(error).__name__))

    def _submit(self, rows: Rows, accepted: asyncio.Future[None]) -> None:
        try:
            for place, request in enumerate(rows.requests):
                handle = self._engine.submit(request)
                rows.handles.append(handle)
                self._rows_of[handle] = (rows, place)
        except Exception as error:
            for handle in rows.handles:
                self._drop(handle)
            what = error.what if isinstance(error, FirstlightError) else str(error)
            wrong = bad_value(what) if isinstance(error, FirstlightError) else engine_failed(what)
            self._tell(_set_exception, accepted, wrong)
        else:
            self._tell(_set_result, accepted)

    def _cancel(self, rows: Rows, place: int) -> None:
        if place < len(rows.handles):
            self._drop(rows.handles[place])
        self.num_active, self.num_waiting = self._engine.num_active, self._engine.num_waiting

    def _drop(self, handle: int) -> None:
        if self._rows_of.pop(handle, None) is not None:
            self._engine.cancel(handle)

    def _tell(self, call: Callable, *arguments: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _set_exception(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
