"""From logits to the next token.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from firstlight.errors import ConfigError


def check_sampling(*, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ConfigError where a value has no meaning."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"temperature {temperature} is not possible", hint="0 takes the likeliest token, 1 samples as trained"
        )
    if top_k is not None and top_k < 0:
        raise ConfigError(f"top_k {top_k} is negative", hint="0 turns it off, 50 is usual")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p} is outside 0 to 1", hint="1 turns it off, 0.9 is usual")


def sample(
    logits_BV: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose one id for each row, independently, (B,) int64.

    temperature: divides the logits; 0 takes the largest logit and uses no randomness.
    top_k: only the k largest logits can be chosen; 0 or None is off, and so is a k beyond the vocabulary.
    top_p: only the smallest set of likeliest ids whose probabilities reach p can be chosen (Holtzman et al. 2020,
        arXiv 1904.09751); 1 or None is off. Taken after top_k and temperature. The likeliest id always stays.
    generator: source of randomness, on the logits' device. Needed above temperature 0: the global one is never used.

    Raises ConfigError for values without meaning, and for logits that are not finite.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits_BV = logits_BV.float()
    # A sum is finite where all its parts are, unless they are huge; it is cheaper than a look at each.
    if not math.isfinite(logits_BV.sum().item()) and not bool(torch.isfinite(logits_BV).all()):
        raise ConfigError(
            "the model's logits are not finite (NaN or infinite)",
            hint="its weights are damaged or were never loaded; use an earlier checkpoint",
        )
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    assert generator is not None, "sampling needs an explicit generator"
    if top_k:
        kept_Bk = logits_BV.topk(min(top_k, logits_BV.shape[-1]), dim=-1)
        logits_BV = torch.full_like(logits_BV, float("-inf")).scatter(-1, kept_Bk.indices, kept_Bk.values)
    # The largest logit is taken off first, so that a small temperature cannot overflow.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature
    probs_BV = logits_BV.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        sorted_BV = probs_BV.sort(dim=-1, descending=True)
        reached_before_BV = sorted_BV.values.cumsum(dim=-1) - sorted_BV.values
        kept_BV = sorted_BV.values.masked_fill(reached_before_BV >= top_p, 0.0)
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, sorted_BV.indices, kept_BV)
    return torch.multinomial(probs_BV, num_samples=1, generator=generator)[:, 0]
