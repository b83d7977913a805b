"""Claims about the cache.

1. Reading a prompt in pieces, at once, or without a cache gives the same logits; so does one token at a time.
2. What is in it never moves or changes. 3. It cannot be written past its end, and says so before it writes.
"""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.infer.cache import KVCache
from firstlight.infer.decoder import prefill
from firstlight.model.attention import Kernel
from firstlight.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=200)


def random_gpt() -> GPT:
    model = GPT(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0.0, 0.3 if name == "lm_head.weight" else weight.shape[1] ** -0.5, generator=generator)
    return model.requires_grad_(False)


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def empty_cache(*, batch_rows: int = 2, max_len: int = 200) -> KVCache:
    return KVCache.empty(CONFIG, batch_rows=batch_rows, max_len=max_len, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
@pytest.mark.parametrize("pieces", [[150], [1] * 12, [1, 7, 64, 2], [100, 50], [5, 1, 1, 130, 1]])
def test_cached_logits_are_the_uncached_ones(kernel: Kernel, pieces: list[int]) -> None:
    model, cache = random_gpt(), empty_cache()
    model.attention_kernel = kernel
    ids_BT = random_ids(2, sum(pieces))
    expected_BTV = model(ids_BT)
    cached_BTV = torch.cat([model(piece_BT, cache) for piece_BT in ids_BT.split(pieces, dim=1)], dim=1)
    assert cache.length == sum(pieces)
    assert (cached_BTV - expected_BTV).abs().max() < 2e-5


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_prefill_in_chunks_gives_the_last_logits(chunk: int) -> None:
    model, cache = random_gpt(), empty_cache()
    ids_BT = random_ids(2, 70)
    logits_BV = prefill(model, ids_BT, cache, chunk=chunk)
    assert (logits_BV - model(ids_BT)[:, -1]).abs().max() < 2e-5


def test_older_entries_never_change() -> None:
    """Two layers, two and two positions: a cache that grew by copying once mixed older keys up."""
    cache = empty_cache(batch_rows=1, max_len=4)
    generator = torch.Generator().manual_seed(0)
    written = []
    for _ in range(2):
        for layer in range(2):
            k, v = torch.randn(2, 1, 2, 2, 16, generator=generator)
            held_k, held_v = cache.append(layer, k, v)
            written.append((layer, k, v))
            expected_k = torch.cat([k for place, k, _ in written if place == layer], dim=2)
            expected_v = torch.cat([v for place, _, v in written if place == layer], dim=2)
            assert torch.equal(held_k, expected_k)
            assert torch.equal(held_v, expected_v)
        cache.advance(2)
    address = cache.k_LBGMK.data_ptr()
    assert held_k.data_ptr() == address + held_k.storage_offset() * 4, "views, not copies"


def test_writing_past_the_end_is_refused_before_anything_is_written() -> None:
    model, cache = random_gpt(), empty_cache(max_len=10)
    model(random_ids(2, 8), cache)
    before = cache.k_LBGMK.clone()
    with pytest.raises(ConfigError, match="the cache holds 8 of 10 tokens and 3 more do not fit"):
        model(random_ids(2, 3), cache)
    assert cache.length == 8
    assert torch.equal(cache.k_LBGMK, before)
    model(random_ids(2, 2), cache)
    assert cache.length == 10


def test_positions_past_the_models_are_refused_counting_what_is_cached() -> None:
    """Not a zero-length slice of the rotary table and a matmul error far away."""
    model, cache = random_gpt(), empty_cache()
    model(random_ids(2, 199), cache)
    with pytest.raises(ConfigError, match=r"201 tokens \(199 cached and 2 new\) is longer than .* max_seq_len 200"):
        model(random_ids(2, 2), cache)


def test_cache_of_another_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="made for 2 rows and was given 3"):
        random_gpt()(random_ids(3, 4), empty_cache())


@pytest.mark.parametrize("max_len", [0, 201])
def test_cache_that_the_model_cannot_fill_is_refused(max_len: int) -> None:
    with pytest.raises(ConfigError, match="max_seq_len 200"):
        empty_cache(max_len=max_len)


def test_repeated_rows_are_independent_copies_of_the_prompt() -> None:
    model, cache = random_gpt(), empty_cache(batch_rows=1)
    prompt_1T, next_31 = random_ids(1, 20), torch.tensor([[3], [50], [96]])
    model(prompt_1T, cache)
    several = cache.repeat_rows(3)
    logits_3V = model(next_31, several)[:, -1]
    assert (cache.length, several.length) == (20, 21)
    for row in range(3):
        expected_V = model(torch.cat([prompt_1T, next_31[row : row + 1]], dim=1))[0, -1]
        assert (logits_3V[row] - expected_V).abs().max() < 2e-5


def test_repeated_rows_may_have_another_dtype() -> None:
    cache = empty_cache(batch_rows=1)
    random_gpt()(random_ids(1, 20), cache)
    rounded = cache.repeat_rows(2, dtype=torch.bfloat16)
    assert (cache.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(rounded.v_LBGMK[:, 1], cache.v_LBGMK[:, 0].bfloat16())
    assert torch.equal(rounded.last_ids, cache.last_ids.repeat(2))
