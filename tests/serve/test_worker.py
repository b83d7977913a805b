"""Claims of serve/worker.py: one thread for the engine, room that is counted, rows that are freed, failures that are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from firstlight.infer.batch import Request
from firstlight.serve.errors import ApiError
from firstlight.serve.worker import Ended, EngineWorker, Rows
from tests.serve.helpers import ScriptedEngine

ENDLESS = 10**6


def request(prompt: int = 65, *, max_new_tokens: int = 3) -> Request:
    return Request((prompt,), max_new_tokens)


def run(act: Callable[[EngineWorker], Coroutine[Any, Any, None]], engine: ScriptedEngine, *, max_open: int = 6) -> None:
    async def main() -> None:
        worker = EngineWorker(engine, max_open=max_open)
        worker.start()
        try:
            await asyncio.wait_for(act(worker), 30)
        finally:
            await asyncio.to_thread(worker.stop)
        assert not worker.is_healthy

    asyncio.run(main())


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.002)


async def ids_of(rows: Rows) -> list[list[int]]:
    ids: list[list[int]] = [[] for _ in rows.requests]
    num_over = 0
    while num_over < len(ids):
        event = await rows.events.get()
        assert not isinstance(event, Ended)
        ids[event[0]].append(event[1].id)
        num_over += event[1].finish_reason is not None
    return ids


def test_each_request_gets_its_own_tokens_from_one_thread() -> None:
    engine = ScriptedEngine(lambda r: [r.prompt_ids[0], r.prompt_ids[0] + 1, r.prompt_ids[0] + 2])

    async def act(worker: EngineWorker) -> None:
        opened = [await worker.open([request(10 * i), request(10 * i + 3)]) for i in range(1, 4)]
        for i, rows in enumerate(opened, start=1):
            assert await ids_of(rows) == [[10 * i, 10 * i + 1, 10 * i + 2], [10 * i + 3, 10 * i + 4, 10 * i + 5]]
        assert worker.num_open == 0
        await until(lambda: worker.num_active == 0)

    run(act, engine)
    assert len(engine.threads) == 1
    assert engine.threads != {threading.get_ident()}


def test_beyond_the_queue_a_request_is_refused_until_there_is_room() -> None:
    engine = ScriptedEngine(lambda r: [65], max_rows=2)

    async def act(worker: EngineWorker) -> None:
        rows = await worker.open([request(max_new_tokens=ENDLESS)] * 3)
        await until(lambda: (worker.num_active, worker.num_waiting) == (2, 1))
        with pytest.raises(ApiError) as caught:
            await worker.open([request()] * 2)
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        # Not a matter of waiting.
        with pytest.raises(ApiError) as caught:
            await worker.open([request()] * 5)
        assert caught.value.status == 400
        worker.close_row(rows, 0)
        worker.close_row(rows, 1)
        assert await ids_of(await worker.open([request()] * 2)) == [[65] * 3] * 2
        worker.close(rows)
        assert worker.num_open == 0
        await until(lambda: (worker.num_active, worker.num_waiting) == (0, 0))

    run(act, engine, max_open=4)
    assert engine.cancelled == [1, 2, 3]


def test_a_request_that_the_engine_refuses_takes_no_room() -> None:
    engine = ScriptedEngine(lambda r: [65])

    async def act(worker: EngineWorker) -> None:
        with pytest.raises(ApiError) as caught:
            await worker.open([request(), Request((), 1)])
        assert caught.value.status == 400
        assert caught.value.message == "the prompt has no tokens"
        assert worker.num_open == 0
        assert await ids_of(await worker.open([request()])) == [[65] * 3]

    run(act, engine)
    assert engine.cancelled == [1]


def test_a_step_that_fails_ends_its_rows_and_the_next_request_is_served() -> None:
    engine = ScriptedEngine(lambda r: [65])

    async def act(worker: EngineWorker) -> None:
        rows = await worker.open([request(max_new_tokens=ENDLESS)])
        engine.failure = ValueError("broken")
        event = await rows.events.get()
        while not isinstance(event, Ended):
            event = await rows.events.get()
        assert event.error is not None
        assert (event.error.status, event.error.message) == (500, "the model failed: broken")
        worker.close(rows)
        engine.failure = None
        assert worker.is_healthy
        assert worker.num_failures >= 1
        assert await ids_of(await worker.open([request()])) == [[65] * 3]

    run(act, engine)


def test_at_the_end_nothing_new_is_taken_and_what_runs_is_told() -> None:
    engine = ScriptedEngine(lambda r: [65], step_s=0.001)

    async def act(worker: EngineWorker) -> None:
        rows = await worker.open([request(max_new_tokens=ENDLESS)])
        worker.begin_shutdown()
        with pytest.raises(ApiError) as caught:
            await worker.open([request()])
        assert caught.value.status == 503
        worker.end_all()
        event = await rows.events.get()
        while not isinstance(event, Ended):
            event = await rows.events.get()
        assert event == Ended("shutdown")
        worker.close(rows)

    run(act, engine)


def test_a_request_that_is_given_up_while_it_is_handed_over_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(lambda r: [65], step_s=0.02)

    async def act(worker: EngineWorker) -> None:
        busy = await worker.open([request(max_new_tokens=ENDLESS)])
        opening = asyncio.ensure_future(worker.open([request(max_new_tokens=ENDLESS)]))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert worker.num_open == 1
        worker.close(busy)
        await until(lambda: worker.num_active == 0)

    run(act, engine)
