"""The tasks of a bundle, run on a model: by all processes together, in small slabs, able to go on where it was ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from firstlight.eval.core.bundle import Bundle, Example, Task, read_examples
from firstlight.eval.core.prompts import fewshot_indices, ordered, render
from firstlight.eval.core.results import CoreResult, summarize
from firstlight.eval.core.scorer import Scorer
from firstlight.eval.core.tasks import Decision, decide, make_question
from firstlight.eval.slabs import Record, all_do, work_through
from firstlight.runtime.context import Runtime

Encode = Callable[[list[str]], Sequence[Any]]
"""Ids of texts, without BOS: a list or an array of whole numbers each."""


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

    everyone, _ = all_do(runtime, prepare, should_stop=None)
    by_label = {task.label: task for task in chosen}

    def score(label: str, mine: list[int]) -> list[Record]:
        return score_examples(
            scorer, encode, bos_id, by_label[label], examples[label], mine, world_size=runtime.world_size
        )

    found = work_through(
        {task.label: len(examples[task.label]) for task in chosen}, everyone, score, runtime=runtime, on_records=on_records,
        progress=progress, should_stop=should_stop, keeps_slab=True,
    )  # fmt: skip
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
    """Decisions for some of a task's ordered examples, as they are kept: task, index in the task's order, correct, choice,
    margin, marks, seconds. seconds in a record: this call's, shared out evenly over all
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
