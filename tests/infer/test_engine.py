"""Claims about generation.

1. Greedy text is what a plain loop without a cache gives; bf16 logits of the decoding copy equal the model's to the bit.
2. Samples are independent from their first token on, and repeat with the seed. 3. Each stops for its own stated reason.
4. Training is not touched: weights, gradients, mode, random state, and the caller's gradient mode between two steps.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from ranks import run_ranks

from firstlight.errors import ConfigError
from firstlight.infer.engine import decoding_copy, generate
from firstlight.model import sharding
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt

pytestmark = pytest.mark.usefixtures("way")

CONFIG = GPTConfig(vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=24)
PROMPT = [5, 90, 0, 33]


def random_gpt(compute_dtype: torch.dtype = torch.float32, config: GPTConfig = CONFIG) -> GPT:
    model = GPT(config, compute_dtype=compute_dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0.0, 0.3 if name == "lm_head.weight" else weight.shape[1] ** -0.5, generator=generator)
    return model


def plain_greedy(model: GPT, ids: list[int], num_tokens: int) -> list[int]:
    ids = list(ids)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-num_tokens:]


@pytest.mark.parametrize("prefill_chunk", [1, 3, 512])
def test_greedy_text_is_the_plain_loops(prefill_chunk: int) -> None:
    model = random_gpt()
    steps = list(generate(model, PROMPT, max_new_tokens=15, temperature=0.0, prefill_chunk=prefill_chunk))
    assert [ids for (ids,) in steps] == plain_greedy(model, PROMPT, 15)


def test_greedy_samples_are_all_the_same() -> None:
    assert all(
        len(set(ids)) == 1 for ids in generate(random_gpt(), PROMPT, max_new_tokens=5, temperature=0, num_samples=3)
    )


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_decoding_copy_gives_the_same_logits_to_the_bit(compute_dtype: torch.dtype) -> None:
    model = random_gpt(compute_dtype)
    copy = decoding_copy(model)
    ids_BT = torch.tensor([PROMPT])
    assert torch.equal(copy(ids_BT), model(ids_BT))
    assert copy.lm_head.weight.dtype == compute_dtype
    shared = copy.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    assert shared == (compute_dtype == torch.float32), "nothing is copied where nothing is cast"


def test_first_tokens_of_samples_differ() -> None:
    first = next(iter(generate(random_gpt(), PROMPT, max_new_tokens=1, num_samples=16, seed=0)))
    assert len(first) == 16
    assert len(set(first)) > 4


def test_seed_decides_the_text() -> None:
    model = random_gpt()
    first, again, other = (
        list(generate(model, PROMPT, max_new_tokens=12, num_samples=2, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_first_tokens_have_the_models_probabilities() -> None:
    """Every sample, not only the batch's first one, is drawn from the distribution behind the prompt."""
    model = random_gpt()
    with torch.no_grad():
        expected_V = model(torch.tensor([PROMPT]))[0, -1].softmax(-1)
    num = 4000
    ids = next(iter(generate(model, PROMPT, max_new_tokens=1, num_samples=num, seed=0)))
    share_V = torch.bincount(torch.tensor(ids), minlength=97) / num
    assert (share_V - expected_V).abs().max() < 4 * (0.25 / num) ** 0.5


def test_each_sample_goes_on_from_its_own_tokens() -> None:
    """A hand-made model: id i is followed by 7 i mod 15, and after id 15 all ids are equally likely."""
    config = GPTConfig(vocab_size=16, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=12)
    model = GPT(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for i in range(15):
            model.transformer.wte.weight[i, i] = 1.0
            model.lm_head.weight[7 * i % 15, i] = 100.0
    columns = list(zip(*generate(model, [15], max_new_tokens=8, num_samples=8, seed=0), strict=True))
    assert len({column[0] for column in columns}) > 3
    for column in columns:
        for before, after in itertools.pairwise(column):
            assert before == 15 or after == 7 * before % 15


@pytest.mark.parametrize("top_k", [0, None])
def test_top_k_of_zero_is_no_filter(top_k: int | None) -> None:
    ids = next(iter(generate(random_gpt(), PROMPT, max_new_tokens=1, num_samples=500, temperature=5.0, top_k=top_k)))
    assert len(set(ids)) > 40


def test_each_sample_stops_at_its_own_stop_id() -> None:
    model = random_gpt()
    free = list(generate(model, PROMPT, max_new_tokens=20, num_samples=4, seed=3))
    stop_id = free[4][2]
    generation = generate(model, PROMPT, max_new_tokens=20, num_samples=4, seed=3, stop_ids=[stop_id])
    columns = list(zip(*generation, strict=True))
    assert "stop_id" in generation.finish_reasons
    for column, unstopped, reason in zip(columns, zip(*free, strict=True), generation.finish_reasons, strict=True):
        if reason == "stop_id":
            met = column.index(stop_id)
            assert set(column[met:]) == {stop_id}, "it repeats the id that stopped it"
            assert column[:met] == unstopped[:met]
        else:
            assert stop_id not in column
            assert column == unstopped[: len(column)]


def test_generation_ends_when_all_samples_have_stopped() -> None:
    model = random_gpt()
    (second,) = list(generate(model, PROMPT, max_new_tokens=2, temperature=0.0))[1]
    generation = generate(model, PROMPT, max_new_tokens=20, temperature=0.0, num_samples=3, stop_ids=[second])
    steps = list(generation)
    assert len(steps) <= 2
    assert steps[-1] == [second] * 3
    assert generation.finish_reasons == ["stop_id"] * 3
    assert list(generation) == [], "and it stays ended"


def test_end_by_number_of_tokens_is_stated() -> None:
    generation = generate(random_gpt(), PROMPT, max_new_tokens=3, num_samples=2)
    assert generation.finish_reasons == [None, None]
    assert len(list(generation)) == 3
    assert generation.finish_reasons == ["max_new_tokens"] * 2


def test_full_context_ends_the_text_and_says_so() -> None:
    model = random_gpt()
    generation = generate(model, PROMPT, max_new_tokens=1000, temperature=0.0)
    ids = [i for (i,) in generation]
    # 24 positions, 4 of them the prompt's; the last position still predicts one more token.
    assert len(ids) == 24 - 4 + 1
    assert generation.finish_reasons == ["context_full"]
    assert ids == plain_greedy(model, PROMPT, 21)


def test_prompt_that_fills_the_context_gets_one_token() -> None:
    generation = generate(random_gpt(), [1] * 24, max_new_tokens=5)
    assert len(list(generation)) == 1
    assert generation.finish_reasons == ["context_full"]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1] * 25, {}, "the prompt has 25 tokens and the model's context is 24"),
        ([1, 97], {}, "prompt id 97 is outside the model's vocabulary of 97"),
        ([-1], {}, "prompt id -1 is outside"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens 0 is too small"),
        ([1], {"num_samples": 0}, "num_samples 0 is too small"),
        ([1], {"temperature": -0.5}, "temperature -0.5"),
        ([1], {"top_k": -2}, "top_k -2"),
    ],
)
def test_mistakes_are_refused_before_any_work(prompt: list[int], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(random_gpt(), prompt, **({"max_new_tokens": 4} | options))


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_training", [True, False])
def test_training_is_not_touched(compute_dtype: torch.dtype, is_training: bool) -> None:
    model = random_gpt(compute_dtype).train(is_training)
    model(torch.tensor([PROMPT])).sum().backward()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    for _ in generate(model, PROMPT, max_new_tokens=8, num_samples=2, seed=1):
        assert torch.is_grad_enabled(), "the caller's gradient mode stays as it is between two steps"
        assert model.training == is_training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training == is_training
    for name, p in model.named_parameters():
        assert p.requires_grad
        assert torch.equal(p, weights[name])
        assert torch.equal(p.grad, grads[name])


def test_abandoned_generation_leaves_gradients_on() -> None:
    generation = generate(random_gpt(), PROMPT, max_new_tokens=8)
    next(generation)
    del generation
    assert torch.is_grad_enabled()


SHARDED = GPTConfig(
    vocab_size=101, n_layer=3, n_embd=64, n_head=4, n_kv_head=2, max_seq_len=32, value_embed_every=2, residual_scales=True,
    smear=True, backout=True,
)  # fmt: skip


def weights_of(model):
    draw = torch.Generator().manual_seed(4)
    return {name: 0.2 * torch.randn(p.shape, generator=draw) for name, p in model.named_parameters()}


def ten_tokens(model, stop_ids):
    found = generate(
        model, [5, 6, 7], max_new_tokens=10, temperature=0.8, top_k=50, seed=3, num_samples=2, stop_ids=stop_ids
    )
    return list(found), found.finish_reasons


def in_shards(runtime, stop_ids):
    model = sharding.build_sharded_gpt(SHARDED, runtime, seed=1)
    sharding.load_pieces(model, weights_of(build_gpt(SHARDED, seed=1)))
    return ten_tokens(model.eval(), stop_ids)


def test_sharded_weights_give_the_ids_of_whole_ones_and_every_rank_makes_as_many_steps():
    model = build_gpt(SHARDED, seed=1)
    sharding.load_pieces(model, weights_of(model))
    unstopped, _ = ten_tokens(model.eval(), ())
    stop_ids = (unstopped[3][0],)
    ids, reasons = ten_tokens(model, stop_ids)
    for sharded_ids, sharded_reasons in run_ranks(in_shards, 2, stop_ids):
        assert len(sharded_ids) == 10, "not fewer than any other rank could need"
        assert sharded_ids[: len(ids)] == ids
        assert sharded_reasons == reasons
