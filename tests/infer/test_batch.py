"""Claims about the batched engine.

1. Whatever arrives when, and whatever is cancelled: each request's greedy ids are those of a plain loop of full passes, for
every kind of model, with long prompts in pieces and equal prompts read once. 2. A sampled text depends on its own request
alone. 3. Log-probabilities and alternatives are those of a full pass in float64. 4. Forced ids come next, are read by the
model, and are not sampled. 5. Rows end for the reasons stated, at the places that the engine for one text has. 6. No row
is leaked. 7. The model and the global random state are not touched.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.infer import batch
from firstlight.infer.batch import BatchEngine, Request, Token, complete
from firstlight.infer.engine import generate
from firstlight.infer.native.step import NativeStep
from firstlight.model.gpt import GPT, GPTConfig

pytestmark = pytest.mark.usefixtures("way")

CASES: dict[str, dict[str, Any]] = {
    "classic": {},
    "modern": {"value_embed_every": 2},
    "portable": {"mlp": "swiglu", "mlp_width": 56, "embed_norm": False, "softcap": 0.0},
    "all": {
        "value_embed_every": 1, "residual_scales": True, "smear": True, "backout": True, "qk_gain": 1.3, "n_kv_head": 1,
    },
}  # fmt: skip
CONTEXT = 40


def random_gpt(changes: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> GPT:
    sizes = {"vocab_size": 97, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "max_seq_len": CONTEXT}
    model = GPT(GPTConfig(**{**sizes, **(changes or {})}), compute_dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0.0, 0.3 if weight.dim() == 1 or name == "lm_head.weight" else 0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_gpt(CASES["all"])


def plain_greedy(model: GPT, request: Request) -> list[int]:
    """Full passes without a cache."""
    ids = list(request.prompt_ids)
    new: list[int] = []
    with torch.no_grad():
        while len(new) < request.max_new_tokens and len(ids) <= model.config.max_seq_len:
            new.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            ids.append(new[-1])
            if new[-1] in request.stop_ids:
                break
    return new


def greedy_requests(draw: random.Random, num: int, *, longest: int = CONTEXT, **changes: Any) -> list[Request]:
    return [
        Request(
            tuple(draw.randrange(97) for _ in range(draw.randint(1, longest))),
            draw.randint(1, 12),
            temperature=0.0,
            stop_ids=frozenset({draw.randrange(97)}),
            **changes,
        )
        for _ in range(num)
    ]


def run_all(engine: BatchEngine) -> dict[int, list[Token]]:
    found: dict[int, list[Token]] = {}
    while engine.num_active or engine.num_waiting:
        for token in engine.step():
            found.setdefault(token.handle, []).append(token)
    return found


def ids_of(tokens: Iterable[Token]) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize("prefill_chunk", [7, 64])
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_the_plain_loops_whoever_else_is_there(case: str, prefill_chunk: int) -> None:
    model = random_gpt(CASES[case])
    draw = random.Random(prefill_chunk)
    requests = greedy_requests(draw, 10)
    requests += draw.choices(requests, k=3)
    engine = BatchEngine(model, max_rows=4, prefill_chunk=prefill_chunk)
    found: dict[int, list[int]] = {}
    request_of: dict[int, Request] = {}
    cancelled: set[int] = set()
    waiting = list(requests)
    while waiting or engine.num_active or engine.num_waiting:
        for _ in range(draw.randint(0, 2)):
            if waiting:
                request = waiting.pop()
                request_of[engine.submit(request)] = request
        if request_of and draw.random() < 0.1:
            cancelled.add(draw.choice(list(request_of)))
            engine.cancel(max(cancelled))
        for token in engine.step():
            found.setdefault(token.handle, []).append(token.id)
    assert len(request_of) == 13
    assert len(cancelled) < 6
    for handle, request in request_of.items():
        expected = plain_greedy(model, request)
        ids = found.get(handle, [])
        assert ids == expected if handle not in cancelled else ids == expected[: len(ids)]


def test_a_bf16_answer_is_close_to_the_models_own() -> None:
    """Greedy ids may differ in bf16; each chosen id must be as good as the best one within its rounding."""
    model = random_gpt(CASES["modern"], torch.bfloat16)
    requests = greedy_requests(random.Random(2), 9, longest=20)
    for max_rows in (4, 9):
        for request, answer in zip(requests, complete(model, requests, max_rows=max_rows), strict=True):
            with torch.no_grad():
                logits_TV = model(torch.tensor([[*request.prompt_ids, *answer.ids[:-1]]]))[0]
            logits_TV = logits_TV[len(request.prompt_ids) - 1 :]
            chosen_T = logits_TV.gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
            assert (logits_TV.amax(-1) - chosen_T).max() < 0.15


def test_sampled_texts_depend_on_their_own_request_alone(model: GPT) -> None:
    draw = random.Random(5)
    rules: Sequence[dict[str, Any]] = (
        {},
        {"top_k": 5},
        {"top_k": 9, "temperature": 0.5},
        {"top_p": 0.8},
        {"top_k": 40, "top_p": 0.5},
    )
    requests = [
        Request(tuple(draw.randrange(97) for _ in range(draw.randint(1, 20))), 15, seed=i, **rules[i % 5])
        for i in range(15)
    ]  # fmt: skip
    alone = [complete(model, [request])[0].ids for request in requests]
    assert [answer.ids for answer in complete(model, requests, max_rows=4)] == alone
    shuffled = draw.sample(list(enumerate(requests)), len(requests))
    together = complete(model, [request for _, request in shuffled], max_rows=15)
    assert [answer.ids for answer in together] == [alone[i] for i, _ in shuffled]


def test_the_seed_decides_and_samples_of_one_prompt_differ(model: GPT) -> None:
    requests = [Request((5, 6, 7), 8, seed=seed) for seed in (*range(8), 3)]
    answers = [tuple(answer.ids) for answer in complete(model, requests, max_rows=3)]
    assert len(set(answers)) == 8
    assert answers[8] == answers[3]


def test_equal_prompts_are_read_once(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_read: list[int] = []
    hidden, read = GPT.hidden, NativeStep.read
    monkeypatch.setattr(
        GPT, "hidden", lambda self, ids, cache: (rows_read.append(ids.shape[0]), hidden(self, ids, cache))[1]
    )
    monkeypatch.setattr(
        NativeStep, "read", lambda self, prompts, *rest, **more: (
            rows_read.append(len(prompts)), read(self, prompts, *rest, **more)
        )[1],
    )  # fmt: skip
    prompts = [(5, 6, 7), (8, 9)]
    # Lengths differ, so later ones are let in beside a row that began with the same prompt.
    requests = [Request(prompts[i // 6], 5 + i, temperature=0.0) for i in range(12)]
    answers = complete(model, requests, max_rows=8)
    assert sum(rows_read) == 2
    for request, answer in zip(requests, answers, strict=True):
        assert answer.ids == plain_greedy(model, request)


def test_a_short_prompt_is_read_alike_beside_a_long_one(way: str) -> None:
    """In bf16, where the two ways to read round differently; torch's operations are not exact in company at all."""
    if way == "torch":
        pytest.skip("exactness in company is the native step's")
    sizes = {"n_embd": 64, "n_head": 2, "n_kv_head": 2, "max_seq_len": 300}
    model = random_gpt(sizes, torch.bfloat16)
    short, long = (5, 6, 7, 8, 9, 10), tuple(i % 90 for i in range(100))
    alone = complete(model, [Request(short, 40, temperature=0.0)])[0]
    beside = complete(model, [Request(short, 40, temperature=0.0), Request(long, 3, temperature=0.0)])[0]
    assert beside == alone


def exact_logprobs(model: GPT, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of a full pass in float64, (T,V)."""
    exact = random_gpt(vars(model.config)).double()
    for module in exact.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float64
    with torch.no_grad():
        return exact(torch.tensor([list(ids)]))[0].double().log_softmax(-1)


def test_logprobs_and_alternatives_are_those_of_a_full_pass_at_temperature_one(model: GPT) -> None:
    engine = BatchEngine(model, max_rows=3)
    requests = [
        Request((5, 6), 6, temperature=0.3, top_k=3, seed=1, num_top=4),
        Request((9, 1, 4, 2), 6, temperature=0.0, num_top=2),
        Request((3,), 6, seed=4),
    ]
    handles = [engine.submit(request) for request in requests]
    found = run_all(engine)
    for handle, request in zip(handles, requests, strict=True):
        tokens = found[handle]
        start = len(request.prompt_ids) - 1
        logprobs_TV = exact_logprobs(model, [*request.prompt_ids, *ids_of(tokens)])[start:]
        for token, logprobs_V in zip(tokens, logprobs_TV, strict=False):
            assert token.logprob == pytest.approx(logprobs_V[token.id].item(), abs=1e-4)
            expected = logprobs_V.topk(request.num_top)
            assert [i for i, _ in token.top] == expected.indices.tolist()
            assert [x for _, x in token.top] == pytest.approx(expected.values.tolist(), abs=1e-4)


class Forcing:
    """After the n-th chosen id it forces some."""

    def __init__(self, after: int, ids: list[int]) -> None:
        self.after_num, self.ids, self.seen = after, ids, []

    def after(self, token_id: int) -> list[int]:
        self.seen.append(token_id)
        return self.ids if len(self.seen) == self.after_num else []


def test_forced_ids_come_next_and_are_read(model: GPT) -> None:
    tools: list[Forcing] = []

    def make() -> Forcing:
        tools.append(Forcing(3, [50, 51, 52]))
        return tools[-1]

    with_tool = Request((5, 6), 10, temperature=0.0, tool=make, stop_ids=frozenset({51}))
    without = Request((5, 6), 10, temperature=0.0)
    answer, plain = complete(model, [with_tool, without])
    assert answer.ids[:6] == [*plain.ids[:3], 50, 51, 52]
    assert answer.is_forced == [False] * 3 + [True] * 3 + [False] * 4
    expected = plain_greedy(model, Request((5, 6, *answer.ids[:6]), 4))
    assert answer.ids[6:] == expected
    assert answer.finish_reason == "max_new_tokens", "a forced id is no stop"
    assert tools[0].seen == [i for i, forced in zip(answer.ids, answer.is_forced, strict=True) if not forced]
    logprobs_TV = exact_logprobs(model, [5, 6, *answer.ids])[1:]
    assert answer.logprobs[4] == pytest.approx(logprobs_TV[4, 51].item(), abs=1e-4)


class Slow:
    """After the third chosen id it has something in its hands until somebody gives it."""

    def __init__(self) -> None:
        self.future: Future[list[int]] = Future()
        self.num_seen = 0

    def after(self, token_id: int) -> list[int] | Future[list[int]]:
        self.num_seen += 1
        return self.future if self.num_seen == 3 else []


@pytest.mark.parametrize("prompt", [(5, 6), (9,)])
def test_a_slow_tool_holds_its_own_row_alone_and_changes_no_text(model: GPT, prompt: tuple[int, ...]) -> None:
    slow = Slow()
    held = Request(prompt, 10, seed=1, tool=lambda: slow)
    others = [Request((5, 6), 12, temperature=0.0), Request((7,) * 20, 20, seed=5)]
    quick = complete(model, [Request(prompt, 10, seed=1, tool=lambda: Forcing(3, [50, 51]))])[0]
    engine = BatchEngine(model, max_rows=3)
    handle, *rest = [engine.submit(request) for request in (held, *others)]
    tokens = [token for _ in range(30) for token in engine.step()]
    assert [sum(t.handle == h for t in tokens) for h in (handle, *rest)] == [3, 12, 20]
    assert engine.step() == [], "the one that is left waits"
    slow.future.set_result([50, 51])
    tokens += [token for found in run_all(engine).values() for token in found]
    assert ids_of(t for t in tokens if t.handle == handle) == quick.ids
    for other, h in zip(others, rest, strict=True):
        assert ids_of(t for t in tokens if t.handle == h) == complete(model, [other])[0].ids


def test_what_a_cancelled_rows_tool_still_had_to_do_is_dropped(model: GPT) -> None:
    slow = Slow()
    engine = BatchEngine(model, max_rows=2)
    handle = engine.submit(Request((5, 6), 10, tool=lambda: slow))
    for _ in range(4):
        engine.step()
    engine.cancel(handle)
    assert slow.future.cancelled()
    assert engine.num_active == 0


def test_sampled_ids_after_forced_ones_use_their_own_numbers(model: GPT) -> None:
    request = Request((5, 6), 9, seed=3, tool=lambda: Forcing(2, [50, 51]))
    first, second = complete(model, [request, Request((7,), 9, seed=9)])[0], complete(model, [request])[0]
    assert (first.ids, first.is_forced) == (second.ids, second.is_forced)


@pytest.mark.parametrize("num_prompt", [1, CONTEXT - 1, CONTEXT])
def test_a_full_context_ends_the_text_where_the_other_engine_does(model: GPT, num_prompt: int) -> None:
    request = Request((3,) * num_prompt, 100, temperature=0.0)
    answer = complete(model, [request])[0]
    generation = generate(model, list(request.prompt_ids), max_new_tokens=100, temperature=0.0)
    assert answer.ids == [i for (i,) in generation]
    assert (answer.finish_reason, len(answer.ids)) == ("context_full", CONTEXT + 1 - num_prompt)


def test_forced_ids_beyond_the_context_are_left_out(model: GPT) -> None:
    request = Request((3,) * (CONTEXT - 3), 100, temperature=0.0, tool=lambda: Forcing(1, [50] * 30))
    answer = complete(model, [request])[0]
    assert answer.ids[1:] == [50] * 3
    assert answer.finish_reason == "context_full"


def test_reasons_are_stated_with_the_last_token_only(model: GPT) -> None:
    engine = BatchEngine(model, max_rows=2, max_len=12)
    third = plain_greedy(model, Request((5, 6), 3))[2]
    handles = [
        engine.submit(Request((5, 6), 9, temperature=0.0, stop_ids=frozenset({third}))),
        engine.submit(Request((5, 6), 4, temperature=0.0)),
        engine.submit(Request((5, 6) * 4, 30, temperature=0.0)),
    ]
    found = run_all(engine)
    assert [found[h][-1].finish_reason for h in handles] == ["stop_id", "max_new_tokens", "context_full"]
    assert [len(found[h]) for h in handles] == [3, 4, 5]
    assert all(token.finish_reason is None for tokens in found.values() for token in tokens[:-1])


def test_running_rows_get_a_token_at_each_step_while_a_long_prompt_is_read(model: GPT) -> None:
    engine = BatchEngine(model, max_rows=3, prefill_chunk=4)
    first = engine.submit(Request((5,), 30, temperature=0.0))
    engine.step()
    second = engine.submit(Request((6,) * 17, 3, temperature=0.0))
    third = engine.submit(Request((7,), 3, temperature=0.0))
    seen = [{token.handle for token in engine.step()} for _ in range(6)]
    # 17 tokens are five pieces of 4; the next request is let in after them.
    assert seen == [{first}, {first}, {first}, {first}, {first, second}, {first, second, third}]


def test_a_free_row_is_used_at_once(model: GPT) -> None:
    engine = BatchEngine(model, max_rows=2)
    handles = [engine.submit(Request((5 + i,), 3, temperature=0.0)) for i in range(3)]
    assert engine.num_waiting == 3
    assert {token.handle for token in engine.step()} == set(handles[:2])
    assert (engine.num_active, engine.num_waiting) == (2, 1)
    engine.cancel(handles[0])
    assert engine.num_active == 1
    assert {token.handle for token in engine.step()} == {handles[1], handles[2]}
    engine.cancel(handles[0])
    engine.cancel(12345)
    assert engine.num_active == 2


def test_many_schedules_leak_no_rows(model: GPT) -> None:
    draw = random.Random(11)
    engine = BatchEngine(model, max_rows=3, max_len=16, prefill_chunk=5)
    for _ in range(200):
        live: set[int] = set()
        for _ in range(draw.randint(1, 6)):
            action = draw.random()
            if action < 0.5:
                request = greedy_requests(draw, 1, longest=12)[0]
                live.add(engine.submit(request))
            elif action < 0.7 and live:
                handle = draw.choice(sorted(live))
                engine.cancel(handle)
                live.discard(handle)
            else:
                for token in engine.step():
                    assert token.handle in live, "nothing comes from what was cancelled or has ended"
                    if token.finish_reason is not None:
                        live.discard(token.handle)
            assert engine.num_active + engine.num_waiting == len(live)
            assert engine.num_active <= 3
        for handle in draw.sample(sorted(live), len(live)):
            engine.cancel(handle)
        assert (engine.num_active, engine.num_waiting) == (0, 0)
    assert engine.step() == []
    request = greedy_requests(draw, 1, longest=5)[0]
    handle = engine.submit(request)
    assert ids_of(run_all(engine)[handle]) == plain_greedy(model, request)


def test_complete_reports_its_progress_and_takes_no_requests(model: GPT) -> None:
    seen: list[int] = []
    complete(model, [Request((5,), n, temperature=0.0) for n in (3, 1, 2)], max_rows=2, progress=seen.append)
    assert seen[-1] == 3
    assert seen == sorted(set(seen))
    assert complete(model, []) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": ()}, "the prompt has no tokens"),
        ({"prompt_ids": (1,) * 41}, "the prompt has 41 tokens and the model's context is 40"),
        ({"prompt_ids": (1, 97)}, "prompt id 97 is outside the model's vocabulary of 97"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 is too small"),
        ({"temperature": -0.5}, "temperature -0.5"),
        ({"top_k": -2}, "top_k -2"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"num_top": 98}, "num_top 98"),
    ],
)
def test_mistakes_are_refused_at_once(model: GPT, changes: dict[str, Any], message: str) -> None:
    engine = BatchEngine(model, max_rows=2)
    with pytest.raises(ConfigError, match=message):
        engine.submit(Request(**{"prompt_ids": (1,), "max_new_tokens": 4, **changes}))
    assert engine.num_waiting == 0


def test_engines_that_cannot_be_are_refused(model: GPT) -> None:
    with pytest.raises(ConfigError, match="max_rows 0 is too small"):
        BatchEngine(model, max_rows=0)


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        complete(GPT(random_gpt().config), [Request((1,), 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_not_touched_and_new_weights_are_seen(dtype: torch.dtype) -> None:
    model = random_gpt(CASES["all"], dtype).train()
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    requests = [Request((5, 6), 8, seed=1), Request((5, 6), 8, temperature=0.0)]
    first = complete(model, requests)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert torch.is_grad_enabled()
    for name, p in model.named_parameters():
        assert p.requires_grad
        assert torch.equal(p, before[name])
        assert torch.equal(p.grad, gradients[name])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-0.7)
    assert complete(model, requests)[1] != first[1]


def test_memory_grows_with_what_is_used(model: GPT) -> None:
    engine = BatchEngine(model, max_rows=1000)
    few = engine._cache.num_bytes
    complete_one = engine.submit(Request((1,), 3))
    assert len(run_all(engine)[complete_one]) == 3
    assert engine._cache.num_bytes == few
    for i in range(5):
        engine.submit(Request((i,), 3))
    run_all(engine)
    # Two tensors of 2 layers, 8 rows, 1 head, 40 positions, 8 numbers of 4 bytes.
    assert engine._cache.num_bytes <= 2 * 2 * 8 * 1 * 40 * 8 * 4
    assert batch.PREFILL_CHUNK > 0
