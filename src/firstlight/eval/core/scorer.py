"""The one question that every task asks of a model: how likely is this end of that text, and is it what you would say?

A model that can answer it (`Scorer`) can be scored on all tasks: ours (`firstlight.eval.core.engine`), or any causal
language model of the transformers library (`firstlight.interop.hf_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """A text in ids, the first of them BOS where the model has one; ``ids[start:]`` is the end that is scored.

    Raises ValueError where nothing would be scored or the first scored id has none before it.
    """

    ids: tuple[int, ...]
    start: int

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.ids):
            raise ValueError(f"start {self.start} of {len(self.ids)} ids leaves nothing to score or nothing before it")


@dataclass(frozen=True)
class Scored:
    """nats: summed loss of the scored ids. num_tokens: how many. is_greedy: each was the likeliest at its place."""

    nats: float
    num_tokens: int
    is_greedy: bool

    @property
    def mean_nats(self) -> float:
        """Loss per scored id."""
        return self.nats / self.num_tokens


class Scorer(Protocol):
    """A model that scores the ends of texts."""

    @property
    def max_seq_len(self) -> int | None:
        """Most ids of a request; None where there is no limit."""
        ...

    def score(self, groups: Sequence[Sequence[Request]]) -> list[list[Scored]]:
        """The answers, in the order of the requests.

        Requests of one group are likely to begin alike (choices of one question), which a scorer may use. All logits and
        losses are taken in float32 or better. Requests longer than ``max_seq_len`` are refused with ConfigError: cutting
        them is the caller's decision.
        """
        ...
