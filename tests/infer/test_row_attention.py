"""Claims about attention over rows of different lengths: each row gets what a softmax written out gives it, whatever lies
behind its end, and only the new token's place is written."""

from __future__ import annotations

import pytest
import torch

from firstlight.infer.batch_cache import BatchCache
from firstlight.infer.row_attention import RowPlaces, attend_to_rows
from firstlight.model.config import GPTConfig


@pytest.mark.parametrize("lengths", [[5, 5, 5], [1, 9, 4], [64, 2, 1]])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (6, 3), (3, 1)])
def test_each_row_sees_its_own_tokens(lengths: list[int], num_heads: int, num_kv_heads: int) -> None:
    B, G, R, K = len(lengths), num_kv_heads, num_heads // num_kv_heads, 4
    config = GPTConfig(
        vocab_size=11, n_layer=2, n_head=num_heads, n_kv_head=G, n_embd=K * num_heads, max_seq_len=64
    )  # fmt: skip
    cache = BatchCache(config, max_rows=B + 1, max_len=64, dtype=torch.float32, device="cpu")
    cache.reserve(B + 1, 64)
    draw = torch.Generator().manual_seed(0)
    cache.k_LBGMK.copy_(torch.randn(cache.k_LBGMK.shape, generator=draw))
    cache.v_LBGMK.copy_(torch.randn(cache.v_LBGMK.shape, generator=draw))
    for row, length in enumerate(lengths):
        cache.k_LBGMK[:, row, :, length:] = 1e4
        cache.v_LBGMK[:, row, :, length:] = 1e4
    before = cache.k_LBGMK.clone()
    q_NRK = torch.randn(B * G, R, K, generator=draw)
    k_BGK, v_BGK = torch.randn(2, B, G, K, generator=draw)
    places = RowPlaces(cache, lengths, torch.tensor(lengths) - 1)
    y_NRK = attend_to_rows(cache, places)(1, q_NRK, k_BGK, v_BGK)
    for row, length in enumerate(lengths):
        for group in range(G):
            keys_SK = cache.k_LBGMK[1, row, group, :length].clone()
            values_SK = cache.v_LBGMK[1, row, group, :length]
            assert torch.equal(keys_SK[-1], k_BGK[row, group])
            assert torch.equal(values_SK[-1], v_BGK[row, group])
            weights_RS = (q_NRK[row * G + group].double() @ keys_SK.double().T).exp()
            expected_RK = weights_RS @ values_SK.double() / weights_RS.sum(-1, keepdim=True)
            assert (y_NRK[row * G + group] - expected_RK).abs().max() < 1e-5
    changed = (cache.k_LBGMK != before).any(-1).nonzero().tolist()
    assert changed == [[1, row, group, lengths[row] - 1] for row in range(B) for group in range(G)]
