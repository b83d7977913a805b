"""CORE on the way: the tasks of `firstlight eval core`, scored during training at a set interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from firstlight.errors import ConfigError
from firstlight.eval.core.bundle import Bundle, Example
from firstlight.eval.core.engine import GPTScorer
from firstlight.eval.core.evaluate import evaluate_core
from firstlight.model.gpt import GPT
from firstlight.recipes.core_bundle import obtain_bundle
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.guard import Dropped
from firstlight.train.probing import Budget


def core_bundle(settings: BaseSettings, *, runtime: Runtime, cache_dir: Path, console: Console) -> Bundle | None:
    """The tasks that a run will be scored on, or None where it asks for none. Before step 0; collective.

    Raises ConfigError for settings that cannot work or a folder that is no bundle, DataError for a download that failed.
    """
    if settings.core_every == 0:
        return None
    if settings.shard_weights:
        raise ConfigError(
            "--core-every needs whole weights on each process, and --shard-weights divides them",
            hint="leave one of them out, and score the checkpoints with `firstlight eval core`",
        )
    try:
        return obtain_bundle(settings.core_bundle, control=runtime.control, cache_dir=cache_dir, report=console.say)
    except ConfigError as error:
        raise ConfigError(error.what.replace("--bundle", "--core-bundle", 1), hint=error.hint) from error


class CoreProbe:
    """Score the tasks every ``every`` steps, and at the end (0: never)."""

    name = "core"

    def __init__(
        self,
        bundle: Bundle | None,
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
        """beat, should_stop: see `firstlight.recipes.probes.Validation`. bundle: from `core_bundle`."""
        self._bundle, self._tokenizer = bundle, tokenizer
        self._every, self._max_per_task = every, max_per_task
        self._console, self._runtime = console, runtime
        self._beat, self._should_stop = beat, should_stop
        self._examples: dict[str, list[Example]] = {}
        self.budget = budget

    def due(self, step: int, is_last: bool) -> bool:
        return self._bundle is not None and self._every > 0 and step > 0 and (is_last or step % self._every == 0)

    def measure(self, model: GPT, step: int, *, is_over: Callable[[], bool]) -> dict[str, Any]:
        """A row with the scores; over its budget only how far it came, since a mean of some tasks is another number."""
        assert self._bundle is not None
        num_done = total = 0
        with self._console.progress("scoring CORE", unit="examples") as bar:

            def show(done: int, of: int, label: str) -> None:
                nonlocal num_done, total
                num_done, total = done, of
                self._beat(f"CORE, {label}, {done} of {of} examples done")
                bar.set_total(of)
                bar.advance(done - bar.done)

            try:
                result = evaluate_core(
                    GPTScorer(model, report=self._console.warn),
                    lambda texts: self._tokenizer.encode_batch(texts, self._runtime.num_threads),
                    self._tokenizer.bos_id,
                    self._bundle,
                    runtime=self._runtime,
                    max_per_task=self._max_per_task,
                    progress=show,
                    should_stop=lambda: self._should_stop() or is_over(),
                    examples=self._examples,
                )
            except Dropped:
                if self._runtime.control.largest(float(self._should_stop())):
                    raise
                cut = f"by its budget: {num_done} of {total} examples"
                self._console.say(f"step {step:05d} | CORE: cut {cut}")
                return {"cut": cut, "bundle_hash": self._bundle.content_hash, "max_per_task": self._max_per_task}
        self._console.say(f"step {step:05d} | {result.describe()}")
        row = result.to_dict()
        row["tasks"] = {task.label: task.accuracy for task in result.tasks}
        return row | {"num_examples": total}
