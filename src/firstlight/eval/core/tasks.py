"""From an example to requests for a model, and from its answers to a decision.

    multiple_choice    what all choices have in common at the beginning is the question; the rest of each is scored
    schema             what all prompts have in common at the end is scored, behind each of the contexts
    language_modeling  what the prompt with the continuation has more than the one without it is scored

The option with the lowest loss per scored id is the model's choice, the first one of equals. A continuation is right where
each of its ids is the likeliest at its place.

Beginnings and ends are found in ids, as nanochat does. Where that leaves a result open it is defined here, and counted:

    cropped           a text longer than the context lost its beginning
    cut_scored        even what is scored did not fit, and is scored as far as it does
    nothing_between   an option's ids leave nothing to score (one choice is the beginning of another): its last is scored
    not_a_prefix      ids before the continuation change with it: what is scored begins where the two prompts part
    few_shots         fewer examples to show than the task asks for: all there are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.errors import DataError
from firstlight.eval.core.bundle import Kind
from firstlight.eval.core.scorer import Request, Scored
from firstlight.eval.core.trees import common_prefix

COUNTS = ("cropped", "cut_scored", "nothing_between", "not_a_prefix", "few_shots")


@dataclass(frozen=True)
class Question:
    """Requests of one example. gold: the right one's number. marks: those of `COUNTS` that hold."""

    kind: Kind
    requests: tuple[Request, ...]
    gold: int
    marks: frozenset[str]


@dataclass(frozen=True)
class Decision:
    """What the model made of an example.

    choice: number of the chosen option; for a continuation 0 where it was said and -1 where not. margin_nats: how far the
    second best option's loss per id is behind; None where there is no second. marks: see `Question`.
    """

    is_correct: bool
    choice: int
    margin_nats: float | None
    marks: frozenset[str]


def make_question(
    kind: Kind, texts_ids: Sequence[Any], *, gold: int, bos_id: int | None, max_seq_len: int | None
) -> Question:
    """Requests for the ids of an example's prompts, a list or an array each, without BOS.

    max_seq_len: the last so many ids of a text are kept; None keeps all.
    Raises DataError where a prompt has too few ids for anything to be predicted.
    """
    marks: set[str] = set()
    first = () if bos_id is None else (bos_id,)
    texts = [(*first, *map(int, ids)) for ids in texts_ids]
    if min(map(len, texts)) < 2:
        raise DataError("a prompt of the task has no text", hint="look at the task's data file")
    if kind == "multiple_choice":
        starts = [_common_prefix_of_all(texts)] * len(texts)
    elif kind == "schema":
        backwards = [text[::-1] for text in texts]
        starts = [len(text) - _common_prefix_of_all(backwards) for text in texts]
    else:
        without, with_it = texts
        shared = common_prefix(without, with_it)
        if shared < len(without):
            marks.add("not_a_prefix")
        texts, starts = [with_it], [shared]
    lowest = min(len(text) - start for text, start in zip(texts, starts, strict=True))
    if lowest < 1:
        marks.add("nothing_between")
        starts = [start - 1 + lowest for start in starts]
    if min(starts) < 1:
        # Nothing comes before the first id, so it cannot be scored.
        marks.add("nothing_between")
        starts = [max(1, start) for start in starts]
    requests = []
    for text, start in zip(texts, starts, strict=True):
        if max_seq_len is not None and len(text) > max_seq_len:
            marks.add("cropped")
            num_cropped = len(text) - max_seq_len
            if start - num_cropped < 1:
                marks.add("cut_scored")
            text, start = text[num_cropped:], max(1, start - num_cropped)
        requests.append(Request(text, start))
    return Question(kind, tuple(requests), gold, frozenset(marks))


def decide(question: Question, scored: Sequence[Scored]) -> Decision:
    """The model's choice. A loss that is not a number is never chosen; where all are, nothing is."""
    if question.kind == "language_modeling":
        is_greedy = scored[0].is_greedy
        return Decision(is_greedy, 0 if is_greedy else -1, None, question.marks)
    losses = [each.mean_nats if each.nats == each.nats else float("inf") for each in scored]
    if min(losses) == float("inf"):
        return Decision(False, -1, None, question.marks)
    choice = losses.index(min(losses))
    others = [loss for i, loss in enumerate(losses) if i != choice]
    margin = min(others) - losses[choice] if others and min(others) < float("inf") else None
    return Decision(choice == question.gold, choice, margin, question.marks)


def _common_prefix_of_all(texts: Sequence[Sequence[int]]) -> int:
    return min((common_prefix(texts[0], text) for text in texts[1:]), default=0)
