"""Chat tasks on the way: some questions of each, asked during training at a set interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from firstlight.eval.chat.task import ChatTask
from firstlight.model.gpt import GPT
from firstlight.recipes.chat_eval import evaluate_chat
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.guard import Dropped
from firstlight.train.probing import Budget


class ChatProbe:
    """Ask the first questions of each task every ``every`` steps (0: never; the recipe asks at the end itself)."""

    name = "chat"

    def __init__(
        self,
        tasks: Sequence[ChatTask],
        tokenizer: Tokenizer,
        *,
        every: int,
        max_per_task: int | None,
        console: Console,
        runtime: Runtime,
        beat: Callable[[str], None],
        should_stop: Callable[[], bool],
        budget: Budget,
    ) -> None:
        """tasks: from `firstlight.recipes.chat_bundle.open_tasks`. beat, should_stop: see `firstlight.recipes.probes.Validation`."""
        self._tasks, self._tokenizer = tuple(tasks), tokenizer
        self._every, self._max_per_task = every, max_per_task
        self._console, self._runtime = console, runtime
        self._beat, self._should_stop = beat, should_stop
        self.budget = budget

    def due(self, step: int, is_last: bool) -> bool:
        return bool(self._tasks) and self._every > 0 and step > 0 and step % self._every == 0 and not is_last

    def measure(self, model: GPT, step: int, *, is_over: Callable[[], bool]) -> dict[str, Any]:
        """A row with the scores; over its budget only that it was cut, since a mean of some tasks is another number."""
        try:
            result = evaluate_chat(
                model,
                self._tokenizer,
                self._tasks,
                runtime=self._runtime,
                console=self._console,
                max_per_task=self._max_per_task,
                beat=self._beat,
                should_stop=lambda: self._should_stop() or is_over(),
            )
        except Dropped:
            if self._runtime.control.largest(float(self._should_stop())):
                raise
            self._console.say(f"step {step:05d} | chat tasks: cut by their budget")
            return {"cut": "by its budget", "max_per_task": self._max_per_task}
        scores = ", ".join(f"{task.name} {task.accuracy:.3f} +- {task.stderr:.3f}" for task in result.tasks)
        self._console.say(f"step {step:05d} | {scores}")
        row = result.to_dict()
        for name in ("accuracy", "stderr", "format_rate", "ended_rate"):
            row[name] = {task["task"]: task[name] for task in row["tasks"]}
        row["num_questions"] = sum(task.num_items for task in result.tasks)
        del row["tasks"]
        return row
