"""The tasks of a bundle, run on a model: by all processes together, in small slabs, able to go on where it was ended.

All processes hold the same list of what is left to do. A slab is the next few examples of one task; each process scores
every ``world_size``-th of them, and then all tell each other what they found, in one exchange. So all know the same
decisions after each slab, and an error or a wish to stop on one process ends the evaluation on all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from firstlight import errors
from firstlight.errors import FirstlightError
from firstlight.eval.core.bundle import Bundle, Example, Task, read_examples
from firstlight.eval.core.prompts import fewshot_indices, ordered, render
from firstlight.eval.core.results import CoreResult, summarize
from firstlight.eval.core.scorer import Scorer
from firstlight.eval.core.tasks import Decision, decide, make_question
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped

Encode = Callable[[list[str]], Sequence[Any]]
"""Ids of texts, without BOS: a list or an array of whole numbers each."""

Record = dict[str, Any]
"""A decision as it is kept: task, index in the task's order, correct, choice, margin, marks, seconds."""

FIRST_SLAB, SMALLEST_SLAB, LARGEST_SLAB = 32, 4, 512
"""Examples of one process. It grows while slabs are quick: larger ones have more texts of like length."""
SHORT_S, LONG_S = 2.0, 6.0


def evaluate_core(
    scorer: Scorer,
    encode: Encode,
    bos_id: int | None,
    bundle: Bundle,
    *,
    runtime: Runtime,
    tasks: Sequence[str] | None = None,
    max_per_task: int | None = None,
    baselines: str = "v1",
    done: Iterable[Record] = (),
    on_records: Callable[[list[Record]], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    examples: dict[str, list[Example]] | None = None,
) -> CoreResult:
    """Scores of a model on the bundle's tasks. Collective: every process calls it with the same values.

    tasks: labels; None is all. Texts longer than ``scorer.max_seq_len`` lose their beginning, which is counted.
    done: records of an earlier run with the same model, bundle and settings (the first process's count).
    on_records: told of new records on the first process, in the order in which they are to be kept.
    progress: called with (examples done, examples in all, task). should_stop: looked at after each slab but the last.

    Raises DataError for malformed data, ConfigError for an unknown task, `Dropped` on all processes after ``should_stop``;
    what one process raises ends the evaluation on all.
    """
    chosen = bundle.chosen(tasks)
    examples = {} if examples is None else examples

    def prepare() -> list[Record]:
        read: dict[tuple[str, str], list[Example]] = {}
        for task in chosen:
            if task.label in examples:
                continue
            # Two tasks may ask the same questions, with and without examples shown.
            place = (task.dataset_uri, task.kind)
            if place not in read:
                read[place] = read_examples(task)
            examples[task.label] = ordered(read[place], max_per_task=max_per_task)
        return list(done) if runtime.is_main else []

    refused: list[Exception] = []

    def check_kept() -> list[Record]:
        # What the first process could not keep ends the evaluation on all of them, at their next exchange.
        if refused:
            raise refused[0]
        return []

    everyone, _ = _all_do(runtime, prepare, should_stop=None)
    found: dict[str, dict[int, Record]] = {task.label: {} for task in chosen}
    for record in everyone:
        if record["task"] in found and 0 <= record["index"] < len(examples[record["task"]]):
            found[record["task"]][record["index"]] = record
    total = sum(map(len, examples.values()))
    num_done = sum(map(len, found.values()))
    slab = FIRST_SLAB
    for task in chosen:
        left = [i for i in range(len(examples[task.label])) if i not in found[task.label]]
        while left:
            if progress is not None:
                progress(num_done, total, task.label)
            part, left = left[: slab * runtime.world_size], left[slab * runtime.world_size :]
            mine = part[runtime.rank :: runtime.world_size]

            def score(task: Task = task, mine: list[int] = mine) -> list[Record]:
                return check_kept() + score_examples(
                    scorer, encode, bos_id, task, examples[task.label], mine, world_size=runtime.world_size
                )

            # Nothing is won by a stop behind the last slab, and all would be lost.
            is_last = num_done + len(part) == total
            records, slowest_s = _all_do(runtime, score, should_stop=None if is_last else should_stop)
            records.sort(key=lambda record: record["index"])
            for record in records:
                found[task.label][record["index"]] = record
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
            progress(num_done, total, task.label)
    _all_do(runtime, check_kept, should_stop=None)
    return summarize(
        bundle,
        chosen,
        {label: [decision_of(records[i]) for i in range(len(records))] for label, records in found.items()},
        baselines=baselines,
        max_per_task=max_per_task,
        seconds={label: sum(record["seconds"] for record in records.values()) for label, records in found.items()},
    )


def score_examples(
    scorer: Scorer,
    encode: Encode,
    bos_id: int | None,
    task: Task,
    examples: Sequence[Example],
    indices: Sequence[int],
    *,
    world_size: int = 1,
) -> list[Record]:
    """Decisions for some of a task's ordered examples. seconds in a record: this call's, shared out evenly over all
    examples that ``world_size`` processes scored meanwhile."""
    started_s = time.perf_counter()
    prompts = [render(task, examples, i) for i in indices]
    encoded = iter(encode([text for texts in prompts for text in texts]))
    questions = [
        make_question(
            task.kind,
            [next(encoded) for _ in texts],
            gold=examples[i].gold,
            bos_id=bos_id,
            max_seq_len=scorer.max_seq_len,
        )
        for i, texts in zip(indices, prompts, strict=True)
    ]
    answers = scorer.score([question.requests for question in questions])
    seconds = (time.perf_counter() - started_s) / max(1, len(indices)) / world_size
    found = []
    for i, question, scored in zip(indices, questions, answers, strict=True):
        decision = decide(question, scored)
        marks = set(decision.marks)
        num_shown = len(fewshot_indices(i, num_examples=len(examples), num_fewshot=task.num_fewshot))
        if num_shown < task.num_fewshot:
            marks.add("few_shots")
        found.append({
            "task": task.label,
            "index": i,
            "correct": decision.is_correct,
            "choice": decision.choice,
            "margin": decision.margin_nats,
            "marks": sorted(marks),
            "seconds": round(seconds, 6),
        })  # fmt: skip
    return found


def decision_of(record: Mapping[str, Any]) -> Decision:
    """The decision that a record keeps."""
    return Decision(record["correct"], record["choice"], record["margin"], frozenset(record["marks"]))


def _all_do(
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
