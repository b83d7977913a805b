"""The policy gradient as weights on the cross-entropy that every stage trains on.

The gradient of the expected reward is the mean of ``advantage * grad log p(token)`` over sampled tokens (REINFORCE, Williams
1992). The shared step minimises ``sum of weight * -log p(target) / number of targets``, so a weight of ``advantage`` is all
it takes: tokens of answers above their group's mean become likelier, of those below it less likely.

**Clip** (PPO, Schulman et al. 2017, arXiv 1707.06347, eq. 7), for weights that have moved since the text was sampled. With
r = p_now(token) / p_sampling(token) the objective is min(r A, clip(r, 1 - low, 1 + high) A). Its gradient is r A grad log p,
and 0 where r has left the range on the side to which A pushes. A wider range above than below is DAPO's
(arXiv 2503.14476).

**KL** to a reference model: ``-kl * (log p - log p_ref)`` is added to each token's advantage. In expectation over the
tokens that the model draws this is the gradient of KL(p || p_ref) at each place, since the gradient of sum_v p_v log(p_v /
q_v) is E[log(p/q) grad log p] (the term E[grad log p] is 0). GRPO (arXiv 2402.03300, eq. 4) has another estimate, k3 of
J. Schulman's "Approximating KL Divergence" (2020), as a part of its loss, and the gradient of *that* is the one of
KL(p_ref || p). k3 is never negative and has little variance, so it is what is logged here.

Shapes: B rows, T tokens in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from firstlight.data.batch import IGNORE

MAX_LOG_RATIO = 20.0
"""exp() of more is no ratio that means anything; bounded so that no weight is ever infinite."""


@dataclass(frozen=True)
class Clip:
    """Range of the ratio in which a token is still trained on: 1 - low to 1 + high."""

    low: float
    high: float


@dataclass(frozen=True)
class Weighed:
    """weights_BT: float32, 0 where the target is IGNORE. The rest are sums over targets, for the log.

    ratio_sum: of p_now / p_sampling, num_clipped: targets without gradient for the clip. kl_sum: of k3 in nats.
    """

    weights_BT: torch.Tensor
    ratio_sum: float = 0.0
    num_clipped: int = 0
    kl_sum: float = 0.0


def weigh(
    targets_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    *,
    sampling_logprobs_BT: torch.Tensor | None = None,
    logprobs_BT: torch.Tensor | None = None,
    reference_logprobs_BT: torch.Tensor | None = None,
    clip: Clip | None = None,
    kl: float = 0.0,
) -> Weighed:
    """Weights of the targets' losses. Without clip and kl they are the advantages.

    logprobs_BT: of the targets under the model as it is now; needed for clip (with sampling_logprobs_BT) and for kl (with
    reference_logprobs_BT). None of them carries a gradient.
    """
    is_target_BT = targets_BT != IGNORE
    weights_BT = torch.where(is_target_BT, advantages_BT.float(), 0.0)
    kl_sum, ratio_sum, num_clipped = 0.0, 0.0, 0
    if kl:
        assert logprobs_BT is not None
        assert reference_logprobs_BT is not None
        log_ratio_BT = torch.where(is_target_BT, logprobs_BT - reference_logprobs_BT, 0.0)
        log_ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        weights_BT = weights_BT - kl * log_ratio_BT
        kl_sum = float((torch.expm1(-log_ratio_BT) + log_ratio_BT).sum())
    if clip is not None:
        assert logprobs_BT is not None
        assert sampling_logprobs_BT is not None
        moved_BT = torch.where(is_target_BT, logprobs_BT - sampling_logprobs_BT, 0.0)
        ratio_BT = moved_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        beyond_BT = torch.where(weights_BT > 0, ratio_BT > 1 + clip.high, ratio_BT < 1 - clip.low)
        beyond_BT &= is_target_BT & (weights_BT != 0)
        weights_BT = torch.where(beyond_BT, 0.0, ratio_BT * weights_BT)
        ratio_sum = float(torch.where(is_target_BT, ratio_BT, 0.0).sum())
        num_clipped = int(beyond_BT.sum())
    return Weighed(weights_BT, ratio_sum, num_clipped, kl_sum)
