"""The chat tasks on a model: asked, kept on disk as they go, and shown beside another model's.

Decisions are appended to ``chat/TASK-KEY.jsonl`` in the run's folder, with the answers that the model wrote; KEY stands for
all that decides them (weights, tokenizer, questions, sampling), so nothing is ever taken from another evaluation, and an
evaluation that was killed goes on where it was. Questions have a fixed random order, so more of them begin with those that
were asked already. The result goes to ``chat/KEY.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.errors import ConfigError, DataError
from firstlight.eval.chat.answers import Asker, Record, Sampling
from firstlight.eval.chat.compare import Gain, compare
from firstlight.eval.chat.evaluate import ask_all
from firstlight.eval.chat.results import ChatResult, TaskScore
from firstlight.eval.chat.task import ChatTask
from firstlight.infer.calculator import Calculator
from firstlight.model.gpt import GPT
from firstlight.recipes.core_eval import DecisionLog, weights_hash
from firstlight.recipes.loading import LoadedRun
from firstlight.runtime import environment
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer

SCORING_VERSION = 1
"""Raise when the same model and questions may give other decisions."""


def evaluate_chat(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[ChatTask],
    *,
    runtime: Runtime,
    console: Console,
    max_per_task: int | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    max_rows: int = 32,
    label: str = "chat tasks",
    done: Sequence[Record] = (),
    on_records: Callable[[list[Record]], None] | None = None,
    beat: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ChatResult:
    """Scores of a model on tasks (`firstlight.recipes.chat_bundle.open_tasks`), with a progress bar. Collective.

    The model is not changed, its mode apart from the pass itself included. max_new_tokens: of an answer; None is what each
    task says. temperature 0 takes the likeliest id each time. max_rows: answers written at the same time.
    done, on_records, should_stop: see `ask_all`. beat: told where it is, for a watchdog.

    Raises ConfigError for a model that cannot be asked, DataError for a tokenizer without single letters.
    """
    if not tasks:
        raise ConfigError("there is no task to evaluate", hint="for example --tasks builtin-chat")
    sampling = Sampling(temperature, None, max_new_tokens, seed, max_rows)
    with ExitStack() as stack:
        run = stack.enter_context(Calculator()).run if any(task.kind == "generative" for task in tasks) else None
        asker = Asker(model, tokenizer, sampling=sampling, run_python=run, report=console.warn)
        bar = stack.enter_context(console.progress(label, unit="questions"))

        def show(num_done: int, total: int, name: str) -> None:
            if beat is not None:
                beat(f"{label}, {name}: {num_done} of {total} questions done")
            bar.set_total(total)
            bar.label = f"{label}, {name}"
            bar.advance(num_done - bar.done)

        result = ask_all(
            asker, tasks, runtime=runtime, max_per_task=max_per_task, done=done, on_records=on_records, progress=show,
            should_stop=should_stop,
        )  # fmt: skip
        bar.label = label
    return result


def evaluate_run(
    loaded: LoadedRun,
    tasks: Sequence[ChatTask],
    *,
    runtime: Runtime,
    console: Console,
    max_per_task: int | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    max_rows: int = 32,
    fresh: bool = False,
    folder: Path | None = None,
) -> tuple[ChatResult, dict[str, Any]]:
    """Scores of a run, kept in its folder, and what they rest on: names, hashes, versions, settings and the file. Collective.

    fresh: forget what was kept. folder: where it is kept, ``chat`` in the run's folder where None.
    Raises what `evaluate_chat` raises, and DataError where the folder cannot be written or what it holds is damaged.
    """
    folder = loaded.path / "chat" if folder is None else folder
    facts: dict[str, Any] = {
        "weights_hash": weights_hash(loaded.checkpoint),
        "tokenizer_hash": loaded.tokenizer.content_hash,
        "max_seq_len": loaded.model.config.max_seq_len,
        "dtype": runtime.dtype_name,
        "device": runtime.device.type,
        "seed": seed,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "scoring_version": SCORING_VERSION,
    }
    with _kept(folder, tasks, facts, runtime=runtime, report=console.say, fresh=fresh) as kept:
        result = evaluate_chat(
            loaded.model, loaded.tokenizer, tasks, runtime=runtime, console=console, max_per_task=max_per_task, seed=seed,
            max_new_tokens=max_new_tokens, temperature=temperature, max_rows=max_rows,
            label=f"{loaded.record.name}: the chat tasks", done=kept.records, on_records=kept.append,
        )  # fmt: skip
    asked = {task.name: task.num_items for task in result.tasks}
    num_resumed = sum(record["index"] < asked[record["task"]] for record in kept.records)
    hashes = {task.name: task.content_hash for task in tasks}
    facts |= {
        "model": loaded.record.name, "recipe": loaded.record.recipe, "step": loaded.step, "tasks_hashes": hashes,
        "num_resumed": num_resumed, "answers": {name: str(path) for name, path in kept.paths.items()},
        "versions": environment.versions(),
    }  # fmt: skip
    path = folder / f"{_key({**facts, 'max_per_task': max_per_task, 'num_resumed': None, 'answers': None})}.json"
    facts["result"] = str(path)
    if runtime.is_main:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({**facts, **result.to_dict()}, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    return result, facts


@dataclass
class _Kept:
    """Decisions of earlier evaluations, and where new ones go. paths: by task."""

    records: list[Record]
    logs: dict[str, DecisionLog]

    @property
    def paths(self) -> dict[str, Path]:
        return {name: log.path for name, log in self.logs.items()}

    def append(self, records: list[Record]) -> None:
        for name in dict.fromkeys(record["task"] for record in records):
            self.logs[name].append([record for record in records if record["task"] == name])


@contextmanager
def _kept(
    folder: Path,
    tasks: Sequence[ChatTask],
    facts: dict[str, Any],
    *,
    runtime: Runtime,
    report: Callable[[str], None],
    fresh: bool,
) -> Iterator[_Kept]:
    """One file of decisions a task, open on the first process. Raises DataError on all where one cannot be."""
    logs = {}
    for task in tasks:
        # Letters do not depend on how answers are written.
        of_task = {name: facts[name] for name in facts if task.kind == "generative" or name not in _OF_WRITING}
        of_task |= {"kind": "chat_decisions", "task": task.name, "content_hash": task.content_hash}
        logs[task.name] = DecisionLog(folder / f"{task.name}-{_key(of_task)}.jsonl", of_task, report=report)
    kept = _Kept([], logs)
    problem: DataError | None = None
    with ExitStack() as stack:
        if runtime.is_main:
            try:
                for log in logs.values():
                    stack.callback(log.close)
                    kept.records += log.open(fresh=fresh)
            except DataError as error:
                problem = error
        words = runtime.control.broadcast_text("" if problem is None else json.dumps([problem.what, problem.hint]))
        if words:
            what, hint = json.loads(words)
            raise DataError(what, hint=hint)
        yield kept


_OF_WRITING = ("seed", "temperature", "max_new_tokens")


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def show_chat(
    console: Console, name: str, result: ChatResult, *, beside: tuple[str, ChatResult] | None = None
) -> list[Gain]:
    """Print a table of the tasks, and beside it another model's with what is different and whether it is shown.

    beside: name and result of the other, on the same questions. Returns the gains over it, of each task, each task's form,
    and the mean. Raises DataError where the questions are others.
    """
    gains = compare(result, beside[1]) if beside is not None else []
    rows = []
    for task in result.tasks:
        rows.append(_row(name, task))
        if beside is not None:
            rows.append(_row(beside[0], beside[1].task(task.name)))
    columns = (
        "task",
        "model",
        "kind",
        "questions",
        "chance",
        "accuracy",
        "centred",
        "form",
        "ended",
        "at limit",
        "other end",
    )
    console.table(columns, rows)
    groups = [
        (task.name, group, each.num_items, _percent(each.num_right, each.num_items), _percent(each.num_format, each.num_items))
        for task in result.tasks
        if 1 < len(task.groups) <= MOST_GROUPS
        for group, each in task.groups.items()
    ]  # fmt: skip
    if groups:
        console.table(("task", "kind of question", "questions", "accuracy", "form"), groups, title=name)
    for task in result.tasks:
        if task.num_cropped:
            console.say(
                f"{task.name}: {task.num_cropped:,} questions were longer than the context and lost their beginning"
            )
    console.say(f"{name}: {result.describe()}")
    if beside is not None:
        console.say(f"{beside[0]}: {beside[1].describe()}")
        for gain in gains:
            console.say(f"{gain.name}: {name} against {beside[0]}: {gain.words()}")
    return gains


MOST_GROUPS = 8
"""A task with more kinds of questions (MMLU's subjects) has them in the result's file only."""


def _row(name: str, task: TaskScore) -> tuple[object, ...]:
    form, ended, limit = task.format_rate, task.ended_rate, task.limit_rate
    return (
        task.name,
        name,
        task.kind,
        task.num_items,
        f"{100 * task.chance:.1f}%",
        f"{task.accuracy:.4f} +- {task.stderr:.4f}",
        f"{task.centered:+.4f}",
        None if form is None else f"{100 * form:.1f}%",
        None if ended is None else f"{100 * ended:.1f}%",
        None if limit is None else f"{100 * limit:.1f}%",
        None if ended is None or limit is None else f"{100 * max(0.0, 1 - ended - limit):.1f}%",
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%"
