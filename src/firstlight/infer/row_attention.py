"""Attention of one new token a row over rows of different lengths: all rows together, under a mask.

Shapes: B rows, G key/value heads, N = B*G, R query heads that share a key/value head, K head size, M positions of the cache,
S positions of the longest row in use.
"""

from __future__ import annotations

import torch

from firstlight.infer.batch_cache import BatchCache
from firstlight.infer.fast import Attend


class RowPlaces:
    """Where each row's new token goes, and what each row sees: the same in all layers of a step.

    lengths: tokens of each row, the new one included. positions_B: the new token's position.
    """

    def __init__(self, cache: BatchCache, lengths: list[int], positions_B: torch.Tensor) -> None:
        G, M = cache.k_LBGMK.shape[2:4]
        num, self.longest = len(lengths), max(lengths)
        self.num_rows = num
        device = positions_B.device
        starts_BG = torch.arange(num * G, device=device).view(num, G) * M
        self.places_N = (starts_BG + positions_B[:, None]).flatten()
        self.mask_N1S = None
        if min(lengths) != self.longest:
            unseen_BS = torch.arange(self.longest, device=device) > positions_B[:, None]
            mask_BS = torch.zeros(unseen_BS.shape, dtype=cache.dtype, device=device).masked_fill_(unseen_BS, -torch.inf)
            self.mask_N1S = mask_BS[:, None].expand(num, G, -1).reshape(num * G, 1, -1)


def attend_to_rows(cache: BatchCache, places: RowPlaces) -> Attend:
    """For `firstlight.infer.fast.decode_step`: keep the new key and value of each row, and attend to all that it holds."""

    def attend(layer: int, q_NRK: torch.Tensor, k_BGK: torch.Tensor, v_BGK: torch.Tensor) -> torch.Tensor:
        keys_BGMK, values_BGMK = cache.k_LBGMK[layer], cache.v_LBGMK[layer]
        K, N = keys_BGMK.shape[3], q_NRK.shape[0]
        keys_BGMK.view(-1, K).index_copy_(0, places.places_N, k_BGK.reshape(N, K).to(keys_BGMK.dtype))
        values_BGMK.view(-1, K).index_copy_(0, places.places_N, v_BGK.reshape(N, K).to(values_BGMK.dtype))
        keys_NSK = keys_BGMK.flatten(0, 1)[:N, : places.longest]
        values_NSK = values_BGMK.flatten(0, 1)[:N, : places.longest]
        q_NRK = q_NRK.to(keys_NSK.dtype)
        if places.mask_N1S is None:
            scores_NRS = torch.bmm(q_NRK, keys_NSK.transpose(1, 2))
        else:
            scores_NRS = torch.baddbmm(places.mask_N1S, q_NRK, keys_NSK.transpose(1, 2))
        return torch.bmm(scores_NRS.softmax(-1), values_NSK)

    return attend
