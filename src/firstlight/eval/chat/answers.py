"""Asks a model the questions of a task: the likeliest letter, or an answer that it writes.

A prompt that leaves no room in the context loses text behind its first two ids (BOS and the mark of the user's turn), and is
counted as ``cropped``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from firstlight.eval.chat.task import ChatTask, Grade, Item, letter_ids
from firstlight.eval.core.engine import GPTScorer
from firstlight.eval.core.scorer import Request as Scoring
from firstlight.eval.core.tasks import Question, decide
from firstlight.infer.batch import Completion, Request, complete
from firstlight.infer.chat import split_parts, stop_ids
from firstlight.infer.tools import PythonTool
from firstlight.model.gpt import GPT
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import render_prompt

JUDGES = 4
"""Answers judged at the same time."""

FORMAT = "format"
CROPPED = "cropped"
END_TOKEN, OTHER_TOKEN = "end_token", "other_token"
ENDS = (END_TOKEN, OTHER_TOKEN, "max_new_tokens", "context_full")
"""How an answer ended: with its end token, with another one that no answer holds (it began a new turn), or at a limit."""

Record = dict[str, Any]
"""A decision as it is kept: task, index in the task's order, correct, choice, margin, marks, seconds; answer for people."""


@dataclass(frozen=True)
class Sampling:
    """How answers are written. max_new_tokens: None is what each task says. temperature: 0 is the likeliest id each time."""

    temperature: float = 0.0
    top_k: int | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    max_rows: int = 32


class Asker:
    """A model, its tokenizer and how it is asked. run_python: of the tool; None leaves the tool out."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        sampling: Sampling,
        run_python: Callable[[str], str] | None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._sampling, self._run_python = sampling, run_python
        self._scorer = GPTScorer(model, report=report)

    def ask(
        self, task: ChatTask, items: Sequence[Item], indices: Sequence[int], *, world_size: int = 1
    ) -> list[Record]:
        """Decisions for some of a task's ordered items. seconds in a record: see `score_examples` of eval/core."""
        started_s = time.perf_counter()
        ask = self._letters if task.kind == "categorical" else self._answers
        records = ask(task, [items[i] for i in indices], indices) if indices else []
        seconds = (time.perf_counter() - started_s) / max(1, len(indices)) / world_size
        return [{"task": task.name, **record, "seconds": round(seconds, 6)} for record in records]

    def _letters(self, task: ChatTask, items: Sequence[Item], indices: Sequence[int]) -> list[Record]:
        letters = letter_ids(self._tokenizer, max(item.num_choices for item in items))
        questions = []
        for item in items:
            prompt, marks = self._fitting(item, 1)
            # The letter is the only scored id, so the least loss is the highest logit.
            requests = tuple(Scoring((*prompt, letter), len(prompt)) for letter in letters[: item.num_choices])
            questions.append(Question("multiple_choice", requests, ord(item.answer) - ord("A"), frozenset(marks)))
        scored = self._scorer.score([question.requests for question in questions])
        records = []
        for i, question, losses in zip(indices, questions, scored, strict=True):
            found = decide(question, losses)
            records.append(
                {"index": i, "correct": found.is_correct, "choice": found.choice, "margin": found.margin_nats,
                 "marks": sorted(found.marks)}
            )  # fmt: skip
        return records

    def _answers(self, task: ChatTask, items: Sequence[Item], indices: Sequence[int]) -> list[Record]:
        most = self._sampling.max_new_tokens or task.max_new_tokens
        run = self._run_python
        tokenizer, sampling = self._tokenizer, self._sampling
        requests, marks_of = [], []
        for i, item in zip(indices, items, strict=True):
            prompt, marks = self._fitting(item, most)
            marks_of.append(marks)
            requests.append(
                Request(
                    tuple(prompt), most, temperature=sampling.temperature, top_k=sampling.top_k,
                    seed=seed_of(sampling.seed, task.name, i), stop_ids=stop_ids(tokenizer),
                    tool=None if run is None else lambda: PythonTool(tokenizer, run),
                )
            )  # fmt: skip
        completions = complete(self._model, requests, max_rows=sampling.max_rows)
        texts = [text_of(completion, tokenizer) for completion in completions]
        # Threads: a program's tests run in a process of their own, which is waited for.
        with ThreadPoolExecutor(JUDGES) as pool:
            grades = list(pool.map(_graded, items, texts))
        records = []
        for i, grade, marks, completion in zip(indices, grades, marks_of, completions, strict=True):
            marks = {*marks, end_of(completion, tokenizer), *([FORMAT] if grade.has_format else [])}
            records.append(
                {"index": i, "correct": grade.is_right, "choice": -1, "margin": None, "marks": sorted(marks),
                 "answer": tokenizer.decode(completion.ids)}
            )  # fmt: skip
        return records

    def _fitting(self, item: Item, max_new_tokens: int) -> tuple[list[int], set[str]]:
        context = self._model.config.max_seq_len
        prompt = render_prompt(item.messages, self._tokenizer)
        # At least half of the context stays for the question.
        room = context - min(max_new_tokens, context // 2)
        if len(prompt) <= room:
            return prompt, set()
        return [*prompt[:2], *prompt[len(prompt) - room + 2 :]], {CROPPED}


def _graded(item: Item, text: str) -> Grade:
    assert item.grade is not None, f"{item.where} has no way to be judged"
    return item.grade(text)


def end_of(completion: Completion, tokenizer: Tokenizer) -> str:
    """How an answer ended, one of `ENDS`."""
    if completion.finish_reason != "stop_id":
        return completion.finish_reason
    return END_TOKEN if completion.ids[-1] == tokenizer.special_ids["<|assistant_end|>"] else OTHER_TOKEN


def text_of(completion: Completion, tokenizer: Tokenizer) -> str:
    """The text of an answer, without its calls of the tool and what they printed."""
    return "".join(part.text for part in split_parts(completion.ids, tokenizer) if part.kind == "text")


def seed_of(seed: int, name: str, index: int) -> int:
    """The seed of one answer: a function of the evaluation's seed, the task and the question alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()[:7], "big")
