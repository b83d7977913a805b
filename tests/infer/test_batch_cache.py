"""Claims about the cache of slots: what is held survives growth and copies, sizes are bounded, and a model fills slots."""

from __future__ import annotations

import torch

from firstlight.infer.batch_cache import FIRST_POSITIONS, BatchCache, SlotCache
from firstlight.model.config import GPTConfig

CONFIG = GPTConfig(vocab_size=11, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, max_seq_len=200)


def new_cache(max_rows: int = 6) -> BatchCache:
    return BatchCache(CONFIG, max_rows=max_rows, max_len=200, dtype=torch.float32, device="cpu")


def test_what_is_held_survives_growth_and_new_places_are_zero() -> None:
    cache = new_cache()
    cache.k_LBGMK.copy_(torch.rand(cache.k_LBGMK.shape))
    held = cache.k_LBGMK.clone()
    cache.reserve(3, FIRST_POSITIONS + 1)
    assert cache.k_LBGMK.shape == cache.v_LBGMK.shape == (2, 3, 1, 2 * FIRST_POSITIONS, 4)
    assert torch.equal(cache.k_LBGMK[:, :1, :, :FIRST_POSITIONS], held)
    assert cache.k_LBGMK[:, 1:].eq(0).all()
    assert cache.k_LBGMK[:, :, :, FIRST_POSITIONS:].eq(0).all()
    assert cache.v_LBGMK.eq(0).all()
    assert cache.num_bytes == 2 * (2 * 3 * 1 * 128 * 4) * 4


def test_it_never_grows_beyond_its_sizes_and_not_without_need() -> None:
    cache = new_cache()
    cache.reserve(5, 199)
    assert cache.k_LBGMK.shape[1:4] == (5, 1, 199)
    cache.reserve(6, 200)
    assert cache.k_LBGMK.shape[1:4] == (6, 1, 200)
    before = cache.k_LBGMK
    cache.reserve(1, 1)
    assert cache.k_LBGMK is before


def test_a_copied_slot_holds_the_others_first_tokens_and_keeps_the_rest() -> None:
    cache = new_cache()
    cache.reserve(2, 10)
    cache.v_LBGMK.copy_(torch.rand(cache.v_LBGMK.shape))
    old = cache.v_LBGMK.clone()
    cache.copy_slot(0, 1, 4)
    assert torch.equal(cache.v_LBGMK[:, 1, :, :4], old[:, 0, :, :4])
    assert torch.equal(cache.v_LBGMK[:, 1, :, 4:], old[:, 1, :, 4:])
    assert torch.equal(cache.v_LBGMK[:, 0], old[:, 0])


def test_a_model_writes_to_its_slots_only_and_reads_what_they_hold() -> None:
    cache = new_cache()
    cache.reserve(4, 10)
    slots = SlotCache(cache, first=1, num=2, length=0, last_ids_B=None)
    first = torch.rand(2, 1, 3, 4)
    keys, values = slots.append(1, first, -first)
    assert torch.equal(keys, first)
    assert torch.equal(values, -first)
    slots.advance(3)
    slots.remember(torch.tensor([7, 8]))
    second = torch.rand(2, 1, 2, 4)
    keys, values = slots.append(1, second, -second)
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, -keys)
    assert (slots.length, slots.last_ids.tolist()) == (3, [7, 8])
    assert cache.k_LBGMK[0].eq(0).all()
    assert cache.k_LBGMK[1, [0, 3]].eq(0).all()
    assert cache.k_LBGMK[1, :, :, 5:].eq(0).all()


def test_keys_come_back_in_the_dtype_that_they_came_in() -> None:
    cache = new_cache()
    slots = SlotCache(cache, first=0, num=1, length=2, last_ids_B=None)
    keys, _ = slots.append(
        0, torch.ones(1, 1, 1, 4, dtype=torch.bfloat16), torch.ones(1, 1, 1, 4, dtype=torch.bfloat16)
    )
    assert keys.dtype == torch.bfloat16
    assert keys.shape == (1, 1, 3, 4)
