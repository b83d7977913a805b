"""Claims of serve/generation.py: silence is told, time is limited, and what was generated is counted."""

from __future__ import annotations

import asyncio
import time

from firstlight.infer.batch import Request
from tests.serve.helpers import ScriptedEngine, scripted_service


def test_silence_is_told_and_the_time_limit_ends_it() -> None:
    from firstlight.serve.service import Limits

    async def main() -> None:
        engine = ScriptedEngine(lambda request: [65], step_s=0.25)
        service = scripted_service(engine, limits=Limits(time_limit_s=0.6))
        service.worker.start()
        try:
            generation = await service.begin([Request((1,), 1000)], stops=(), started_s=time.monotonic())
            steps = [step async for step in generation.steps(silence_s=0.05)]
            generation.close()
        finally:
            await asyncio.to_thread(service.worker.stop)
        assert [] in steps
        assert generation.ended_early == "time_limit"
        assert steps[-1][0].is_last
        assert generation.answers[0].finish_reason == "length"
        assert service.worker.num_open == 0
        # It was ended in good order, by us.
        assert service.meters.cancelled.values == {(): 0}

    asyncio.run(asyncio.wait_for(main(), 30))


def test_tokens_and_times_are_counted() -> None:
    async def main() -> None:
        service = scripted_service(ScriptedEngine(lambda request: [65]))
        service.worker.start()
        try:
            generation = await service.begin([Request((1,), 3), Request((1,), 4)], stops=(), started_s=time.monotonic())
            async for _ in generation.steps():
                pass
            generation.close()
        finally:
            await asyncio.to_thread(service.worker.stop)
        assert generation.num_tokens == 7
        lines = service.meters.text().splitlines()
        assert "firstlight_completion_tokens_total 7" in lines
        assert "firstlight_time_to_first_token_seconds_count 2" in lines
        assert "firstlight_time_per_token_seconds_count 5" in lines

    asyncio.run(asyncio.wait_for(main(), 30))
