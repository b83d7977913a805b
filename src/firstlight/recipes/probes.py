"""What a base run measures on the way: bits per byte on validation documents, and what the model says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from firstlight.errors import DataError
from firstlight.eval.bpb import BpbResult, DocumentSums, evaluate_bpb
from firstlight.eval.samples import sample_prompts
from firstlight.eval.windows import BLOCK_BATCHES
from firstlight.model.gpt import GPT
from firstlight.recipes.kept_scores import document_scores, keep_scores
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.document import Document
from firstlight.train.guard import Dropped
from firstlight.train.probing import Budget

NUM_SHOWN = 3
SHOWN_CHARACTERS = 160
"""Samples that are also printed, and how much of each; samples.md has all."""

PROBE_BLOCK_BATCHES = 4
"""So many batches until the next documents are finished, where a score may be cut by its budget."""

NO_LIMIT = Budget(0)

Hidden = Callable[[torch.Tensor], torch.Tensor]


class Validation:
    """The validation documents of a run, read once, and how to score a model on them."""

    def __init__(
        self,
        read_documents: Callable[[], list[Document]],
        content_hash: Callable[[], str],
        tokenizer: Tokenizer,
        *,
        val: str,
        seq_len: int,
        batch_rows: int,
        runtime: Runtime,
        console: Console,
        hidden: Hidden,
        compiled: bool,
        beat: Callable[[str], None] = lambda phase: None,
        should_stop: Callable[[], bool] | None = None,
        forward_is_collective: bool = False,
    ) -> None:
        """read_documents, content_hash: of the validation documents; each is called once, and may wait. val: how they were
        chosen, in words. beat: told of progress; see `Watchdog.beat`. should_stop, forward_is_collective: as in `evaluate_bpb`.
        """
        self._forward_is_collective = forward_is_collective
        self._beat, self._should_stop = beat, should_stop
        self._read, self._find_hash, self._val, self._tokenizer = read_documents, content_hash, val, tokenizer
        self._token_bytes = tokenizer.token_bytes()
        self._seq_len, self._batch_rows = seq_len, batch_rows
        self._runtime, self._console = runtime, console
        self._hidden, self._compiled = hidden, compiled
        self._documents: list[Document] | None = None
        self._hash: str | None = None

    @property
    def documents(self) -> list[Document]:
        """All validation documents, in their defined order (ids stay memory-mapped). Waits for their shards."""
        if self._documents is None:
            self._documents = self._read()
        return self._documents

    @property
    def content_hash(self) -> str:
        """Identity of the validation set by content; printed with every score."""
        if self._hash is None:
            self._hash = self._find_hash()
        return self._hash

    def num_tokens(self) -> int:
        return sum(len(document) for document in self.documents)

    def _read_documents(self) -> None:
        """On all ranks or, where one cannot, on none: the evaluation itself agrees on errors only from its first batch."""
        problem: Exception | None = None
        try:
            _ = self.documents
        except Exception as error:
            problem = error
        if self._runtime.largest(float(problem is not None)):
            raise problem or DataError(
                "the validation documents cannot be read by another process", hint="its message says why"
            )

    def score(
        self,
        model: GPT,
        *,
        max_documents: int | None = None,
        max_tokens: int | None = None,
        is_over: Callable[[], bool] | None = None,
        block_batches: int = BLOCK_BATCHES,
        documents_to: Callable[[DocumentSums], None] | None = None,
    ) -> BpbResult:
        """Bits per byte on the first documents (all where there is no limit). A collective call.

        is_over, block_batches, documents_to: as in `evaluate_bpb`.
        """
        self._read_documents()
        with self._console.progress("scoring", unit="documents") as bar:

            def show(done: int, total: int | None) -> None:
                self._beat(f"scoring, {done} documents done")
                if total is not None:
                    bar.set_total(total)
                bar.advance(done - bar.done)

            return evaluate_bpb(
                model,
                self.documents,
                self._token_bytes,
                bos_id=self._tokenizer.bos_id,
                seq_len=self._seq_len,
                batch_rows=self._batch_rows,
                runtime=self._runtime,
                hidden=self._hidden,
                max_documents=max_documents,
                max_tokens=max_tokens,
                fixed_shape=self._compiled,
                compiled_loss=self._compiled,
                progress=show,
                should_stop=self._should_stop,
                forward_is_collective=self._forward_is_collective,
                is_over=is_over,
                block_batches=block_batches,
                documents_to=documents_to,
            )

    def facts(self, result: BpbResult, *, max_documents: int | None = None) -> dict[str, Any]:
        """A score as a row of the metrics: the numbers, and the identity of what they were measured on.

        A score that was cut is of other documents than those of whole scores, so its numbers have other names: nothing that
        compares or draws ``val_bpb`` takes it for one. max_documents: the limit that it had.
        """
        values = result.to_dict()
        if result.is_cut:
            asked = min(len(self.documents), max_documents or len(self.documents))
            values["partial_val_bpb"] = values.pop("val_bpb")
            values["partial_val_bpb_stderr"] = values.pop("val_bpb_stderr")
            values["cut"] = f"by its budget: {result.num_documents} of {asked} documents"
        return {**values, "val_hash": self.content_hash, "tokenizer_hash": self._tokenizer.content_hash}

    def keep(self, run_dir: Path, sums: DocumentSums, *, step: int, data: str) -> None:
        """Write the scores by document into the run's folder (rank 0)."""
        if not self._runtime.is_main:
            return
        scores = document_scores(
            sums, self.documents, run=run_dir.name, step=step, val_hash=self.content_hash,
            tokenizer_hash=self._tokenizer.content_hash, data=data, val=self._val, max_seq_len=self._seq_len,
            dtype=self._runtime.dtype_name,
        )  # fmt: skip
        keep_scores(run_dir, scores, warn=self._console.warn)


class BpbProbe:
    """Score some validation documents every ``every`` steps (0: never; the recipe scores the end itself)."""

    name = "eval"

    def __init__(
        self,
        validation: Validation,
        *,
        every: int,
        max_documents: int | None,
        console: Console,
        budget: Budget = NO_LIMIT,
    ) -> None:
        self._validation, self._every, self._max_documents = validation, every, max_documents
        self._console = console
        self.budget = budget

    def due(self, step: int, is_last: bool) -> bool:
        return self._every > 0 and step % self._every == 0 and not is_last

    def measure(self, model: GPT, step: int, *, is_over: Callable[[], bool]) -> dict[str, Any]:
        result = self._validation.score(
            model, max_documents=self._max_documents, is_over=is_over, block_batches=PROBE_BLOCK_BATCHES
        )
        facts = self._validation.facts(result, max_documents=self._max_documents)
        name = "part of a val bpb" if result.is_cut else "val bpb"
        self._console.say(f"step {step:05d} | {name}: {result.describe()}")
        return facts


Say = Callable[[GPT, str, int], str]
"""(model, prompt, seed) -> what the model says to it."""


def continuing(tokenizer: Tokenizer) -> Say:
    """How a base model speaks: it goes on with a text."""

    def say(model: GPT, prompt: str, seed: int) -> str:
        options = {"max_new_tokens": 48, "temperature": 0.8, "top_k": 50, "seed": seed}
        return sample_prompts(model, tokenizer, [prompt], **options)[0].text

    return say


class SampleProbe:
    """Let the model speak to fixed prompts every ``every`` steps, and at the end."""

    name = "sample"

    def __init__(
        self,
        say: Say,
        prompts: Sequence[str],
        *,
        every: int,
        console: Console,
        runtime: Runtime,
        in_lockstep: bool = False,
        beat: Callable[[str], None] = lambda phase: None,
        should_stop: Callable[[], bool] = lambda: False,
        budget: Budget = NO_LIMIT,
    ) -> None:
        """should_stop: looked at between prompts where there are several ranks; where it is true on any, all raise Dropped.
        in_lockstep: all ranks continue all prompts, because each forward pass needs all of them (sharded weights)."""
        self._say, self._prompts = say, prompts
        self._every, self._console = every, console
        self._runtime, self._in_lockstep, self._beat = runtime, in_lockstep, beat
        self._should_stop = should_stop
        self.budget = budget

    def due(self, step: int, is_last: bool) -> bool:
        return is_last or (self._every > 0 and step > 0 and step % self._every == 0)

    def measure(self, model: GPT, step: int, *, is_over: Callable[[], bool]) -> dict[str, Any]:
        samples = self.samples(model, is_over=is_over)
        for sample in samples[:NUM_SHOWN]:
            text = " ".join(f"{sample['prompt']}{sample['completion']}".split())
            self._console.say(f"step {step:05d} | sample: {text[:SHOWN_CHARACTERS]}")
        if len(samples) == len(self._prompts):
            return {"samples": samples}
        cut = f"by its budget: {len(samples)} of {len(self._prompts)} prompts"
        self._console.say(f"step {step:05d} | samples: cut {cut}")
        return {"samples": samples, "cut": cut}

    def samples(self, model: GPT, *, is_over: Callable[[], bool] = lambda: False) -> list[dict[str, str]]:
        """What the model says to each prompt, the same for any number of ranks: each continues its share of the prompts.

        is_over: looked at between prompts; where it is true on any rank, the prompts that are left are left out.
        A collective call. Raises on every rank what went wrong on any.
        """
        world_size = 1 if self._in_lockstep else self._runtime.world_size
        rank = 0 if self._in_lockstep else self._runtime.rank
        mine: dict[str, Any] = {}
        problem: Exception | None = None
        for first in range(0, len(self._prompts), world_size):
            # All ranks go round equally often, so a signal to any of them is known to all after one prompt.
            stop = 2.0 * (self._runtime.world_size > 1 and self._should_stop())
            found = self._runtime.control.largest(max(stop, float(is_over())))
            if found == 2:
                raise Dropped
            if found == 1:
                break
            index = first + rank
            if problem is not None or index >= len(self._prompts):
                continue
            self._beat(f"sampling, prompt {index + 1} of {len(self._prompts)}")
            try:
                # A seed for each prompt: the text must not depend on who makes it.
                prompt = self._prompts[index]
                mine[str(index)] = {"prompt": prompt, "completion": self._say(model, prompt, 1337 + index)}
            except Exception as error:
                problem = error
                mine = {"problem": f"rank {self._runtime.rank}: {type(error).__name__}: {error}"}
        gathered = [json.loads(text) for text in self._runtime.control.gather_texts(json.dumps(mine))]
        if problem is not None:
            raise problem
        problems = [found["problem"] for found in gathered if "problem" in found]
        if problems:
            raise RuntimeError(problems[0])
        by_index = {int(index): sample for found in gathered for index, sample in found.items()}
        return [by_index[index] for index in sorted(by_index)]
