"""The chat tasks, run on a model by all processes together, able to go on where it was ended: as eval/core does it.

All processes hold the same list of what is left. Each asks every ``world_size``-th question of the next few, and then all
tell each other what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from firstlight.eval.chat.answers import Asker, Record
from firstlight.eval.chat.results import ChatResult, summarize
from firstlight.eval.chat.task import ChatTask
from firstlight.eval.core.evaluate import FIRST_SLAB, LARGEST_SLAB, LONG_S, SHORT_S, SMALLEST_SLAB, _all_do
from firstlight.runtime.context import Runtime


def ask_all(
    asker: Asker,
    tasks: Sequence[ChatTask],
    *,
    runtime: Runtime,
    max_per_task: int | None = None,
    done: Iterable[Record] = (),
    on_records: Callable[[list[Record]], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ChatResult:
    """Scores of a model on tasks. Collective: every process calls it with the same values.

    done: records of an earlier evaluation of the same model, tasks and settings (the first process's count).
    on_records: told of new records on the first process. progress: called with (questions done, questions in all, task).
    should_stop: looked at after each few questions but the last.

    Raises `Dropped` on all processes after ``should_stop``; what one process raises ends the evaluation on all.
    """
    refused: list[Exception] = []

    def check_kept() -> list[Record]:
        if refused:
            raise refused[0]
        return []

    items = {task.name: task.ordered(max_per_task) for task in tasks}
    found: dict[str, dict[int, Record]] = {task.name: {} for task in tasks}
    everyone, _ = _all_do(runtime, lambda: list(done) if runtime.is_main else [], should_stop=None)
    for record in everyone:
        if record["task"] in found and 0 <= record["index"] < len(items[record["task"]]):
            found[record["task"]][record["index"]] = record
    total, num_done = sum(map(len, items.values())), sum(map(len, found.values()))
    for task in tasks:
        left = [i for i in range(len(items[task.name])) if i not in found[task.name]]
        slab = FIRST_SLAB
        while left:
            if progress is not None:
                progress(num_done, total, task.name)
            part, left = left[: slab * runtime.world_size], left[slab * runtime.world_size :]
            mine = part[runtime.rank :: runtime.world_size]

            def ask(task: ChatTask = task, mine: list[int] = mine) -> list[Record]:
                return check_kept() + asker.ask(task, items[task.name], mine, world_size=runtime.world_size)

            is_last = num_done + len(part) == total
            records, slowest_s = _all_do(runtime, ask, should_stop=None if is_last else should_stop)
            records.sort(key=lambda record: record["index"])
            found[task.name] |= {record["index"]: record for record in records}
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
            progress(num_done, total, task.name)
    _all_do(runtime, check_kept, should_stop=None)
    return summarize(
        tasks,
        items,
        {name: [records[i] for i in range(len(records))] for name, records in found.items()},
        max_per_task=max_per_task,
    )
