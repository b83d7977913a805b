"""The chat tasks, run on a model by all processes together, able to go on where it was ended: see ``eval/slabs.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from firstlight.eval.chat.answers import Asker, Record
from firstlight.eval.chat.results import ChatResult, summarize
from firstlight.eval.chat.task import ChatTask
from firstlight.eval.slabs import all_do, work_through
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
    items = {task.name: task.ordered(max_per_task) for task in tasks}
    everyone, _ = all_do(runtime, lambda: list(done) if runtime.is_main else [], should_stop=None)
    by_name = {task.name: task for task in tasks}

    def ask(name: str, mine: list[int]) -> list[Record]:
        return asker.ask(by_name[name], items[name], mine, world_size=runtime.world_size)

    # Tasks differ in how long an answer takes, so each finds its own slab.
    found = work_through(
        {task.name: len(items[task.name]) for task in tasks}, everyone, ask, runtime=runtime, on_records=on_records,
        progress=progress, should_stop=should_stop, keeps_slab=False,
    )  # fmt: skip
    return summarize(
        tasks,
        items,
        {name: [records[i] for i in range(len(records))] for name, records in found.items()},
        max_per_task=max_per_task,
    )
