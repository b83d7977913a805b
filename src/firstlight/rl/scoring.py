"""How likely a model finds ids that are already there, without gradients: for the clip's ratio, for KL, and for entropy.

Shapes: B rows, T tokens in a row, N targets that count, V ids, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from firstlight.data.batch import IGNORE
from firstlight.model.gpt import GPT
from firstlight.train.loss import default_chunk_rows


@dataclass(frozen=True)
class Scores:
    """logprobs_BT: log p(target) at temperature 1; entropies_BT: of the whole distribution there, in nats.

    Both float32, and 0 where the target is IGNORE.
    """

    logprobs_BT: torch.Tensor
    entropies_BT: torch.Tensor


@torch.no_grad()
def score_targets(model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> Scores:
    """One forward pass. Logits exist for a chunk of targets at a time, and only for those that count."""
    where_BT = targets_BT != IGNORE
    logprobs_BT = torch.zeros(targets_BT.shape, dtype=torch.float32, device=targets_BT.device)
    entropies_BT = torch.zeros_like(logprobs_BT)
    if not bool(where_BT.any()):
        return Scores(logprobs_BT, entropies_BT)
    x_ND = model.hidden(inputs_BT)[where_BT]
    targets_N = targets_BT[where_BT]
    logprobs, entropies = [], []
    rows = default_chunk_rows(model.config.vocab_size)
    for x_RD, targets_R in zip(x_ND.split(rows), targets_N.split(rows), strict=True):
        all_RV = model.logits(x_RD).log_softmax(dim=-1)
        logprobs.append(all_RV.gather(-1, targets_R[:, None])[:, 0])
        entropies.append(-(all_RV.exp() * all_RV).sum(dim=-1))
    logprobs_BT[where_BT] = torch.cat(logprobs)
    entropies_BT[where_BT] = torch.cat(entropies)
    return Scores(logprobs_BT, entropies_BT)
