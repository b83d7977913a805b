"""The engine against the model's own forward pass: one text at a time, no cache, no packing, log-softmax in float64."""

from __future__ import annotations

import random

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.eval.core import engine
from firstlight.eval.core.engine import GPTScorer, extended, is_out_of_memory
from firstlight.eval.core.scorer import Request
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT

V, CONTEXT = 61, 24
OPTIONS = {
    "classic": {},
    "modern": {"value_embed_every": 2},
    "portable": {"mlp": "swiglu", "mlp_width": 96, "embed_norm": False, "softcap": 0.0},
    "smear": {"smear": True},
    "backout": {"backout": True},
    "all": {"value_embed_every": 1, "residual_scales": True, "smear": True, "backout": True, "qk_gain": 1.3},
}


def random_model(*, n_layer: int = 3, n_kv_head: int = 2, dtype: torch.dtype = torch.float32, **options) -> GPT:
    model = GPT(GPTConfig(V, n_layer, 2, n_kv_head, 32, CONTEXT, **options), compute_dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model.requires_grad_(False).eval()


def drawn_groups(num: int = 9) -> list[list[Request]]:
    draw = random.Random(1)
    groups = []
    for _ in range(num):
        head = [draw.randrange(V) for _ in range(draw.randint(1, 14))]
        group = []
        for _ in range(draw.randint(1, 5)):
            ids = head[: draw.randint(1, len(head))] if draw.random() < 0.3 else list(head)
            ids = (*ids, *(draw.randrange(V) for _ in range(draw.randint(1, 8))))
            group.append(Request(ids, draw.randint(1, len(ids) - 1)))
        groups.append(group)
    return groups


def one_by_one(model: GPT, request: Request) -> tuple[float, bool]:
    logits_TV = model(torch.tensor([request.ids[:-1]]))[0, request.start - 1 :].double()
    targets_T = torch.tensor(request.ids[request.start :])
    nats = -torch.log_softmax(logits_TV, -1)[torch.arange(len(targets_T)), targets_T].sum().item()
    return nats, bool((logits_TV.argmax(-1) == targets_T).all())


def check(model: GPT, groups: list[list[Request]], found, tolerance: float) -> int:
    num_greedy = 0
    for group, scored in zip(groups, found, strict=True):
        for request, each in zip(group, scored, strict=True):
            nats, is_greedy = one_by_one(model, request)
            assert each.nats == pytest.approx(nats, abs=tolerance)
            assert each.num_tokens == len(request.ids) - request.start
            assert each.is_greedy == is_greedy
            num_greedy += is_greedy
    return num_greedy


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("n_layer", [1, 3])
def test_losses_are_those_of_the_plain_forward_pass(name: str, n_layer: int):
    model = random_model(n_layer=n_layer, n_kv_head=1 if n_layer == 3 else 2, **OPTIONS[name])
    groups = drawn_groups()
    check(model, groups, GPTScorer(model, batch_tokens=150).score(groups), 2e-4)


def test_greedy_continuations_are_recognised():
    model = random_model()
    draw, groups = random.Random(2), []
    for _ in range(10):
        ids = [draw.randrange(V) for _ in range(6)]
        start = len(ids)
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        groups.append([Request(tuple(ids), start), Request((*ids[:-1], (ids[-1] + 1) % V), start)])
    assert check(model, groups, GPTScorer(model).score(groups), 2e-4) == 10


def test_batch_size_and_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, groups = random_model(**OPTIONS["all"]), drawn_groups()
    whole = GPTScorer(model, batch_tokens=10**6).score(groups)
    monkeypatch.setattr(engine, "LOGITS_BYTES", 4 * V * 3)
    check(model, groups, GPTScorer(model, batch_tokens=1).score(groups), 2e-4)
    check(model, groups, whole, 2e-4)


def test_bf16_is_as_near_as_bf16_is():
    model, groups = random_model(dtype=torch.bfloat16), drawn_groups()
    found = GPTScorer(model).score(groups)
    exact = random_model()
    worst = max(
        abs(each.nats - one_by_one(exact, request)[0]) / each.num_tokens
        for group, scored in zip(groups, found, strict=True)
        for request, each in zip(group, scored, strict=True)
    )
    assert 1e-5 < worst < 0.5


def test_nothing_to_do_and_texts_that_are_too_long():
    scorer = GPTScorer(random_model())
    assert scorer.score([]) == []
    assert scorer.score([[], []]) == [[], []]
    assert scorer.max_seq_len == CONTEXT
    scorer.score([[Request(tuple(range(CONTEXT)), 3)]])
    with pytest.raises(ConfigError, match=f"{CONTEXT + 2} tokens is longer"):
        scorer.score([[Request((0,) * (CONTEXT + 2), 3)]])


def test_extended_tables_continue_the_models_own():
    model = random_model(**OPTIONS["all"])
    longer = extended(model, 3 * CONTEXT)
    ids = torch.arange(CONTEXT)[None] % V
    assert torch.equal(longer(ids), model(ids))
    assert longer.lm_head.weight is not None
    assert longer.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    groups = [[Request(tuple(i % V for i in range(2 * CONTEXT)), 40)]]
    check(longer, groups, GPTScorer(longer).score(groups), 2e-4)


def test_out_of_memory_halves_the_batch_goes_on_and_is_said(monkeypatch: pytest.MonkeyPatch):
    model, groups, said = random_model(), drawn_groups(), []
    scorer = GPTScorer(model, batch_tokens=400, report=said.append)
    real = engine.packed_hidden

    def small(model_, packed):
        if len(packed.ids_N) > 90:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return real(model_, packed)

    monkeypatch.setattr(engine, "packed_hidden", small)
    check(model, groups, scorer.score(groups), 2e-4)
    assert said
    assert all("out of memory" in line for line in said)
    assert len(said) <= 3
    before = len(said)
    scorer.score(groups)
    assert len(said) == before


def test_one_text_that_does_not_fit_and_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch):
    def fail(model_, packed):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "packed_hidden", fail)
    with pytest.raises(ConfigError, match="not enough memory"):
        GPTScorer(random_model()).score(drawn_groups(2))

    def other(model_, packed):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(engine, "packed_hidden", other)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        GPTScorer(random_model()).score(drawn_groups(2))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("no"))
