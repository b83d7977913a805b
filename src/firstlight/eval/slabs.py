"""Items of several tasks, worked through by all processes together, in small slabs, able to go on where it was ended.

All processes hold the same list of what is left to do. A slab is the next few items of one task; each process works on
every ``world_size``-th of them, and then all tell each other what they found, in one exchange. So all know the same
records after each slab, and an error or a wish to stop on one process ends the work on all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from firstlight import errors
from firstlight.errors import FirstlightError
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped

Record = dict[str, Any]
"""What is kept of one item: ``task`` and ``index`` in the task's order, and whatever was found."""

FIRST_SLAB, SMALLEST_SLAB, LARGEST_SLAB = 32, 4, 512
"""Items of one process. It grows while slabs are quick: larger ones have more texts of like length."""
SHORT_S, LONG_S = 2.0, 6.0


def work_through(
    sizes: Mapping[str, int],
    done: Iterable[Record],
    work: Callable[[str, list[int]], list[Record]],
    *,
    runtime: Runtime,
    keeps_slab: bool,
    on_records: Callable[[list[Record]], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, dict[int, Record]]:
    """Records of all items, by task and index. Collective: every process calls it with the same values.

    sizes: items of each task, in the order in which they are worked through. done: records that are there already, the same
    on all processes. work: (task, indices of this process) -> their records. keeps_slab: a task begins with the slab that
    the one before ended with.
    on_records: told of new records on the first process, in the order in which they are to be kept; where it raises, all
    end with that at their next exchange. progress: called with (items done, items in all, task).
    should_stop: looked at after each slab but the last.

    Raises `Dropped` on all processes after ``should_stop``; what one process raises ends the work on all.
    """
    refused: list[Exception] = []

    def check_kept() -> list[Record]:
        # What the first process could not keep ends the evaluation on all of them, at their next exchange.
        if refused:
            raise refused[0]
        return []

    found: dict[str, dict[int, Record]] = {task: {} for task in sizes}
    for record in done:
        if record["task"] in found and 0 <= record["index"] < sizes[record["task"]]:
            found[record["task"]][record["index"]] = record
    total, num_done = sum(sizes.values()), sum(map(len, found.values()))
    slab = FIRST_SLAB
    for task, size in sizes.items():
        left = [i for i in range(size) if i not in found[task]]
        slab = slab if keeps_slab else FIRST_SLAB
        while left:
            if progress is not None:
                progress(num_done, total, task)
            part, left = left[: slab * runtime.world_size], left[slab * runtime.world_size :]
            mine = part[runtime.rank :: runtime.world_size]

            def do(task: str = task, mine: list[int] = mine) -> list[Record]:
                return check_kept() + work(task, mine)

            # Nothing is won by a stop behind the last slab, and all would be lost.
            is_last = num_done + len(part) == total
            records, slowest_s = all_do(runtime, do, should_stop=None if is_last else should_stop)
            records.sort(key=lambda record: record["index"])
            found[task] |= {record["index"]: record for record in records}
            num_done += len(records)
            if on_records is not None and runtime.is_main:
                try:
                    on_records(records)
                except Exception as error:
                    refused.append(error)
            if slowest_s < SHORT_S:
                slab = min(LARGEST_SLAB, 2 * slab)
            elif slowest_s > LONG_S:
                slab = max(SMALLEST_SLAB, slab // 2)
        if progress is not None:
            progress(num_done, total, task)
    all_do(runtime, check_kept, should_stop=None)
    return found


def all_do(
    runtime: Runtime, work: Callable[[], list[Record]], *, should_stop: Callable[[], bool] | None
) -> tuple[list[Record], float]:
    """Everybody's records, and the seconds of the slowest. Raises on all what one process raised, or `Dropped`."""
    started_s = time.perf_counter()
    mine: list[Record] = []
    error: Exception | None = None
    told: dict[str, Any] = {"state": "done"}
    try:
        mine = work()
        if should_stop is not None and should_stop():
            told["state"] = "stop"
    except Exception as raised:
        error = raised
        what, hint = (raised.what, raised.hint) if isinstance(raised, FirstlightError) else (repr(raised), "")
        told = {"state": "failed", "kind": type(raised).__name__, "what": what, "hint": hint}
    told |= {"seconds": time.perf_counter() - started_s, "records": mine}
    heard = [json.loads(text) for text in runtime.control.gather_texts(json.dumps(told))]
    failed = [rank for rank, each in enumerate(heard) if each["state"] == "failed"]
    if error is not None:
        raise error
    if failed:
        each = heard[failed[0]]
        kind = getattr(errors, each["kind"], FirstlightError)
        kind = kind if isinstance(kind, type) and issubclass(kind, FirstlightError) else FirstlightError
        raise kind(f"rank {failed[0]}: {each['what']}", hint=each["hint"])
    records = [record for each in heard for record in each["records"]]
    if any(each["state"] == "stop" for each in heard):
        raise Dropped
    return records, max(each["seconds"] for each in heard)
