"""Claims about the native step.

1. Its logits are those of full passes in float64, for each option of the model and at odd shapes, in float32 and, with the
same rounded weights, in bf16; prompts may be cut anywhere. 2. To the bit they depend neither on the company nor on the
number of threads nor on how a prompt was cut. 3. A row reads no more than it holds. 4. NaN stays NaN. 5. What does not
exist is refused, and nothing is written.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from firstlight.infer.cache import KVCache
from firstlight.infer.native import step
from firstlight.infer.native.step import NativeStep, native_step, why_not_native
from firstlight.model.gpt import GPT
from tests.infer.test_fast import CASES, random_gpt, random_ids

_MISSING = why_not_native(device_type="cpu", dtype=torch.float32)
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=f"no native step: {_MISSING}")

WIDE: dict[str, dict[str, Any]] = {
    # Whole panels, whole vectors, heads of 128; then one more or less of each.
    "whole": {"n_embd": 256, "n_head": 2, "n_kv_head": 2, "vocab_size": 512},
    "ragged": {"n_embd": 132, "n_head": 2, "n_kv_head": 1, "vocab_size": 257, "mlp_width": 527},
    "ragged and gated": {"n_embd": 132, "n_head": 2, "n_kv_head": 2, "vocab_size": 31, "mlp": "swiglu", "mlp_width": 33},
}  # fmt: skip
ALL = CASES | WIDE


def made(model: GPT) -> NativeStep:
    found = native_step(model)
    assert found is not None
    return found


def empty_cache(model: GPT, num_rows: int) -> KVCache:
    return KVCache.empty(
        model.config, batch_rows=num_rows, max_len=model.config.max_seq_len, dtype=model.compute_dtype, device="cpu"
    )


def keys_and_values(model: GPT, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    cache = empty_cache(model, num_rows)
    return cache.k_LBGMK, cache.v_LBGMK


@torch.no_grad()
def exact_logits(options: dict[str, Any], ids_BT: torch.Tensor, *, rounded: torch.dtype) -> torch.Tensor:
    """The model in float64, with weights of matrices rounded as the step has them."""
    exact = random_gpt(options).double()
    for module in exact.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float64
    for name, weight in exact.named_parameters():
        if ".c_" in name or "gate" in name or name == "lm_head.weight":
            weight.copy_(weight.to(rounded))
    return exact(ids_BT)


def step_logits(native: NativeStep, cache: KVCache, ids_BT: torch.Tensor, *, cuts: tuple[int, ...]) -> torch.Tensor:
    """Logits (B,T,V): a prompt up to the last of ``cuts``, read in pieces, then token by token; NaN inside the pieces."""
    B, T = ids_BT.shape
    rows = ids_BT.tolist()
    found_BTV = torch.full((B, T, native._vocab_size), float("nan"))
    for start, end in zip((0, *cuts), cuts, strict=False):
        found_BTV[:, end - 1] = native.read(rows, cache.k_LBGMK, cache.v_LBGMK, start=start, end=end)
    for t in range(cuts[-1], T):
        positions_B = torch.full((B,), t)
        found_BTV[:, t] = native.next_logits(ids_BT[:, t], ids_BT[:, t - 1], positions_B, cache.k_LBGMK, cache.v_LBGMK)
    return found_BTV


@pytest.mark.parametrize("num_rows", [1, 3, 13])
@pytest.mark.parametrize("case", ALL)
def test_logits_are_those_of_full_passes_in_float64(case: str, num_rows: int) -> None:
    model = random_gpt(ALL[case])
    ids_BT = random_ids(model, num_rows, 37)
    found_BTV = step_logits(made(model), empty_cache(model, num_rows), ids_BT, cuts=(1, 5, 18))
    expected_BTV = exact_logits(ALL[case], ids_BT, rounded=torch.float32)
    known = [0, 4, *range(17, 37)]
    assert (found_BTV[:, known] - expected_BTV[:, known]).abs().max() < 3e-5


@pytest.mark.parametrize("case", ALL)
def test_in_bf16_it_is_nearer_to_the_truth_than_the_models_own_pass(case: str) -> None:
    model = random_gpt(ALL[case], torch.bfloat16)
    ids_BT = random_ids(model, 3, 20)
    expected_BTV = exact_logits(ALL[case], ids_BT, rounded=torch.bfloat16)
    found_BTV = step_logits(made(model), empty_cache(model, 3), ids_BT, cuts=(7,))
    with torch.no_grad():
        own_error = (model(ids_BT) - expected_BTV)[:, 7:].abs().mean().item()
    error = (found_BTV - expected_BTV)[:, 7:].abs().mean().item()
    # Only keys and values are rounded; the model's own pass rounds every product.
    assert error < own_error + 1e-6
    assert 0 < own_error < 0.1


def test_a_bf16_cache_is_rounded_as_torch_rounds() -> None:
    """The first layer's keys and values: beside a float32 model with the same rounded weights nothing else differs yet."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = random_gpt(CASES["value embeddings"], dtype)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ".c_" in name or "gate" in name:
                    weight.copy_(weight.bfloat16())
        cache = empty_cache(model, 1)
        made(model).read(random_ids(model, 1, 40).tolist(), cache.k_LBGMK, cache.v_LBGMK)
        found.append(torch.stack((cache.k_LBGMK[0], cache.v_LBGMK[0])))
    assert torch.equal(found[0].bfloat16(), found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["all", "portable", "ragged", "whole"])
def test_company_threads_and_cuts_change_no_bit(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # Models so small would have one thread.
    monkeypatch.setattr(step, "WEIGHT_BYTES_PER_THREAD", 1)
    model = random_gpt(ALL[case], dtype)
    native = made(model)
    ids_BT = random_ids(model, 29, 30)
    together_BTV = step_logits(native, empty_cache(model, 29), ids_BT, cuts=(20,))
    threads = torch.get_num_threads()
    for row, num_threads, cuts in ((0, 1, (20,)), (11, 3, (1, 2, 17, 20)), (28, 5, (13, 20))):
        torch.set_num_threads(num_threads)
        try:
            alone_TV = step_logits(made(model), empty_cache(model, 1), ids_BT[row : row + 1], cuts=cuts)[0]
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(alone_TV[19:], together_BTV[row, 19:])


def test_more_threads_than_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "WEIGHT_BYTES_PER_THREAD", 1)
    model = random_gpt(CASES["narrow"])
    ids_BT = random_ids(model, 2, 20)
    expected_BTV = exact_logits(CASES["narrow"], ids_BT, rounded=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(9)
    try:
        found_BTV = step_logits(made(model), empty_cache(model, 2), ids_BT, cuts=(10,))
    finally:
        torch.set_num_threads(threads)
    assert (found_BTV - expected_BTV)[:, 10:].abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_at_different_places_read_what_they_hold_and_no_more(dtype: torch.dtype) -> None:
    model = random_gpt(CASES["all"], dtype)
    native = made(model)
    lengths = [1, 8, 16, 17, 31, 39]
    ids_BT = random_ids(model, len(lengths), 40)
    cache = empty_cache(model, len(lengths) + 1)
    cache.k_LBGMK.fill_(float("nan"))
    cache.v_LBGMK.fill_(float("nan"))
    prompts = [row[:length] for row, length in zip(ids_BT.tolist(), lengths, strict=True)]
    read_BV = native.read(prompts, cache.k_LBGMK, cache.v_LBGMK)
    picked = torch.arange(len(lengths)), torch.tensor(lengths)
    next_BV = native.next_logits(
        ids_BT[picked], ids_BT[picked[0], picked[1] - 1], picked[1], cache.k_LBGMK, cache.v_LBGMK
    )
    for i, length in enumerate(lengths):
        alone = empty_cache(model, 1)
        alone_TV = step_logits(native, alone, ids_BT[i : i + 1, : length + 1], cuts=(length,))[0]
        assert torch.equal(read_BV[i], alone_TV[length - 1])
        assert torch.equal(next_BV[i], alone_TV[length])
        # Nothing but its own places was written.
        assert cache.k_LBGMK[:, i, :, : length + 1].isfinite().all()
        assert cache.k_LBGMK[:, i, :, length + 1 :].isnan().all()
    assert cache.v_LBGMK[:, len(lengths)].isnan().all()


@pytest.mark.parametrize("name", ["wte", "h.1.attn.c_q", "h.0.attn.c_v", "h.1.mlp.c_fc", "h.2.mlp.c_proj", "lm_head"])
@pytest.mark.parametrize("case", ["classic", "portable", "no cap"])
def test_a_bad_weight_is_seen_in_the_logits(case: str, name: str) -> None:
    """One row of one matrix spoils every logit behind it; of the head, one logit. Torch's own attention can hide it."""
    model = random_gpt(CASES[case])
    with torch.no_grad():
        weight = model.lm_head.weight if name == "lm_head" else model.get_parameter(f"transformer.{name}.weight")
        weight[3] = float("nan")
    cache = empty_cache(model, 1)
    found_V = made(model).read([[3, 3, 3]], cache.k_LBGMK, cache.v_LBGMK)[0].isnan()
    assert found_V.tolist() == [name != "lm_head" or i == 3 for i in range(model.config.vocab_size)]


def test_huge_numbers_are_capped_as_torch_does() -> None:
    for case in ("classic", "portable", "gain"):
        model = random_gpt(CASES[case])
        ids_BT = random_ids(model, 2, 12)
        with torch.no_grad():
            model.lm_head.weight.mul_(100.0)
            for block in model.transformer.h:
                block.mlp.c_fc.weight.mul_(30.0)  # pyrefly: ignore
            expected_BV = model(ids_BT)[:, -1]
        found_BV = made(model).read(ids_BT.tolist(), *keys_and_values(model, 2))
        assert torch.allclose(found_BV, expected_BV, rtol=1e-4, atol=2e-3 if model.config.softcap == 0 else 1e-4)


@pytest.mark.parametrize(
    ("ids", "before", "position", "words"),
    [
        (97, 0, 3, "id 97 behind 0 at position 3 of row 1"),
        (-1, 0, 3, "id -1 behind"),
        (0, 97, 3, "id 0 behind 97"),
        (0, 0, 40, "position 40 of row 1"),
        (0, 0, -1, "position -1 of row 1"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_and_nothing_written(ids: int, before: int, position: int, words: str) -> None:
    model = random_gpt(CASES["classic"])
    cache = empty_cache(model, 2)
    with pytest.raises(IndexError, match=words):
        made(model).next_logits(
            torch.tensor([1, ids]), torch.tensor([2, before]), torch.tensor([0, position]), cache.k_LBGMK, cache.v_LBGMK
        )
    assert not cache.k_LBGMK.any()
    assert not cache.v_LBGMK.any()
    with pytest.raises(IndexError, match="of row 2"):
        made(model).read([[1, 2]], cache.k_LBGMK, cache.v_LBGMK, first_row=2)


def test_the_weights_are_those_of_its_making_and_the_model_is_left_alone() -> None:
    model = random_gpt(CASES["all"])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    native = made(model)
    first_V = native.read([[1, 2, 3]], *keys_and_values(model, 1))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    again_V = native.read([[1, 2, 3]], *keys_and_values(model, 1))
    assert torch.equal(first_V, again_V)


def test_wrong_arguments_are_refused() -> None:
    model = random_gpt(CASES["classic"])
    native, (keys, values) = made(model), keys_and_values(model, 2)
    with pytest.raises(AssertionError, match="a token to read"):
        native.read([[1], [2, 3]], keys, values, start=1)
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(AssertionError):
        native.next_logits(one.int(), one, one, keys, values)
    with pytest.raises(AssertionError):
        native.next_logits(one, torch.ones(2, dtype=torch.int64), one, keys, values)
    with pytest.raises(AssertionError, match="another model's"):
        native.next_logits(one, one, one, keys[:1], values[:1])


def test_torchs_defaults_do_not_matter() -> None:
    model = random_gpt(CASES["all"])
    native, expected_V = made(model), made(model).read([[1, 2, 3]], *keys_and_values(model, 1))
    keys, values = keys_and_values(model, 1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found_V = native.read([[1, 2, 3]], keys, values)
            native.next_logits(*torch.tensor([[4], [3], [3]], device="cpu"), keys, values)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found_V, expected_V)


def test_where_it_is_not_for() -> None:
    assert "not cuda" in str(why_not_native(device_type="cuda", dtype=torch.bfloat16))
    assert "float16" in str(why_not_native(device_type="cpu", dtype=torch.float16))
    assert native_step(random_gpt(CASES["classic"], torch.float16)) is None


def test_long_prompts_are_left_to_the_model() -> None:
    for dtype, longest in ((torch.float32, 256), (torch.bfloat16, 64)):
        native = made(random_gpt(CASES["classic"], dtype))
        assert native.reads([[0] * longest, [0]])
        assert not native.reads([[0], [0] * (longest + 1)])
