"""The next token of every row, each by its own rule: greedy, or with its own temperature, top_k, top_p and seed.

A row's randomness is a list of numbers in 0..1 that its seed gives, one for each token; a number picks the token where the
running sum of the probabilities passes it. So what a row gets depends on its own logits and its own seed alone, and no
generator is called in the loop.

Rows with the same rule (greedy, top_k of a size, top_p, neither) are worked on together.

Shapes: B rows, V vocabulary, N rows of one rule, C candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from firstlight.errors import ConfigError


@dataclass(frozen=True)
class Choice:
    """How one row chooses: see `firstlight.infer.sampling.sample`. number: this token's, from 0 to 1 (1 excluded)."""

    temperature: float
    top_k: int | None
    top_p: float | None
    number: float


def numbers_of_seed(seed: int, num: int) -> list[float]:
    """The first ``num`` random numbers of a seed, 0 <= x < 1; more of them begin with the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, generator=generator).tolist()


def choose(logits_BV: torch.Tensor, choices: Sequence[Choice]) -> torch.Tensor:
    """One id for each row, (B,) int64. ``logits_BV`` are float32 and finite."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, choice in enumerate(choices):
        groups[_rule(choice, logits_BV.shape[1])].append(row)
    if len(groups) == 1:
        ((rule, k),) = groups
        return _chosen(logits_BV, choices, rule, k)
    ids_B = torch.empty(len(choices), dtype=torch.int64, device=logits_BV.device)
    for (rule, k), rows in groups.items():
        rows_N = torch.tensor(rows, device=logits_BV.device)
        ids_B[rows_N] = _chosen(logits_BV[rows_N], [choices[row] for row in rows], rule, k)
    return ids_B


def _rule(choice: Choice, vocab_size: int) -> tuple[str, int]:
    if choice.temperature == 0:
        return "greedy", 0
    if choice.top_k and choice.top_k < vocab_size:
        return "sorted", choice.top_k
    return ("sorted", vocab_size) if choice.top_p is not None and choice.top_p < 1 else ("all", 0)


def _chosen(logits_NV: torch.Tensor, choices: Sequence[Choice], rule: str, k: int) -> torch.Tensor:
    if rule == "greedy":
        return logits_NV.argmax(dim=-1)
    wanted = [(c.temperature, c.number, c.top_p if c.top_p is not None and c.top_p < 1 else inf) for c in choices]
    temperature_N1, number_N1, top_p_N1 = torch.tensor(wanted, device=logits_NV.device).t()[:, :, None].unbind()
    z_NC, ids_NC = logits_NV.topk(k, dim=-1) if rule == "sorted" else (logits_NV, None)
    # The largest logit is taken off first, so that a small temperature cannot overflow.
    sums_NC = (z_NC - z_NC.amax(dim=-1, keepdim=True)).div_(temperature_N1).softmax(dim=-1).cumsum(dim=-1)
    total_N1 = sums_NC[:, -1:]
    if ids_NC is not None:
        # The smallest set of likeliest ids that reaches p: those that the sum before them does not reach it without.
        total_N1 = sums_NC.gather(-1, (sums_NC[:, :-1] < top_p_N1).sum(dim=-1, keepdim=True))
    # The first place whose sum is above the number; in case of rounding the first one that has the whole sum.
    place_N1 = torch.searchsorted(sums_NC, number_N1 * total_N1, right=True)
    place_N1 = place_N1.minimum(torch.searchsorted(sums_NC, total_N1.contiguous()))
    return (place_N1 if ids_NC is None else ids_NC.gather(-1, place_N1))[:, 0]


def check_finite(log_sums_B: torch.Tensor) -> None:
    """Raise ConfigError where the logarithm of a row's sum of exponentials says that a logit is NaN or infinite."""
    if not bool(log_sums_B.isfinite().all()):
        raise ConfigError(
            "the model's logits are not finite (NaN or infinite)",
            hint="its weights are damaged or were never loaded; use an earlier checkpoint",
        )
