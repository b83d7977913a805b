"""Claims about the decoder: whichever step it takes, a prompt read in any way and continued gives the logits of full passes;
and the cache has the dtype that the step wants.
"""

from __future__ import annotations

import pytest
import torch

from firstlight.infer.cache import KVCache
from firstlight.infer.decoder import Decoder, prefill, read_natively, step_dtype
from firstlight.infer.fast import FEW_ROWS
from firstlight.infer.native.step import native_step
from tests.infer.test_fast import CASES, random_gpt, random_ids


@pytest.mark.parametrize("case", ["classic", "all", "portable"])
def test_a_prompt_that_is_read_and_continued_gives_the_logits_of_full_passes(way: str, case: str) -> None:
    model = random_gpt(CASES[case])
    ids_1T = random_ids(model, 1, 15)
    with torch.no_grad():
        expected_TV = model(ids_1T)[0]
    native = native_step(model)
    assert (native is not None) == (way == "native")
    cache = KVCache.empty(model.config, batch_rows=1, max_len=15, dtype=torch.float32, device="cpu")
    if native is not None:
        first_1V = read_natively(native, ids_1T[0, :7].tolist(), cache)
    else:
        first_1V = prefill(model, ids_1T[:, :7], cache, chunk=3)
    assert cache.length == 7
    assert (first_1V[0] - expected_TV[6]).abs().max() < 2e-5
    decoder = Decoder(model, cache.repeat_rows(3), native=native)
    for t in range(7, 15):
        logits_3V = decoder.next_logits(ids_1T[0, t].expand(3))
        assert (logits_3V - expected_TV[t]).abs().max() < 2e-5
    assert decoder.cache.length == 15


def test_the_dtype_of_a_continued_cache(way: str) -> None:
    model = random_gpt(CASES["classic"], torch.bfloat16)
    native = native_step(model)
    few, many = (step_dtype(model, native, batch_rows=rows) for rows in (FEW_ROWS - 1, FEW_ROWS))
    assert many == torch.bfloat16
    # Torch multiplies few rows sooner in float32; the native step reads half as much in bf16.
    assert few == (torch.bfloat16 if way == "native" else torch.float32)
