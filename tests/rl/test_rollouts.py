"""Groups of answers: what is asked of the engine, and what becomes of what it gives."""

from __future__ import annotations

import math

import pytest
from rl import toy
from rl.toy import ToyEnvironment

from firstlight.infer.batch import Completion
from firstlight.infer.engine import generate
from firstlight.rl import rollouts as module
from firstlight.rl.order import sample_seed
from firstlight.rl.rollouts import Sampling, sample_groups
from firstlight.tokens.conversation import Part

END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END, BOS = 260, 261, 262, 263, 264, 256


def scripted(monkeypatch, *answers: Completion) -> list:
    """The engine gives these answers; what it is asked is kept."""
    asked = []

    def complete(model, requests, *, max_rows, progress):
        asked.extend(requests)
        progress(1)
        return list(answers[: len(requests)])

    monkeypatch.setattr(module, "complete", complete)
    return asked


def answer(ids: list[int], reason: str = "stop_id", forced: tuple[int, ...] = ()) -> Completion:
    return Completion(ids, [-0.5] * len(ids), [i in forced for i in range(len(ids))], reason)  # pyrefly: ignore


def sampled(environment, tokenizer, **changes):
    sampling = Sampling(**{"seed": 5, "samples_per_prompt": 2, "max_new_tokens": 9, "seq_len": 64, **changes})
    asked = [(7, environment.problem("train", 0)), (8, environment.problem("train", 1))]
    return sample_groups(toy.tiny_gpt(), environment, tokenizer, asked, sampling, beat=lambda what: None)


def test_what_the_engine_is_asked(tokenizer, monkeypatch) -> None:
    tool = object()
    asked = scripted(monkeypatch, *[answer([END])] * 4)
    sampled(ToyEnvironment(), tokenizer, temperature=0.7, top_k=5, tool=tool)
    assert [r.prompt_ids for r in asked] == [(BOS, 257, 112, 48, 258, 259)] * 2 + [(BOS, 257, 112, 49, 258, 259)] * 2
    assert [r.seed for r in asked] == [sample_seed(5, p, s) for p, s in ((7, 0), (7, 1), (8, 0), (8, 1))]
    for request in asked:
        assert (request.max_new_tokens, request.temperature, request.top_k, request.tool) == (9, 0.7, 5, tool)
        assert {END, BOS} <= request.stop_ids
        assert not {PYTHON, PYTHON_END, OUTPUT} & request.stop_ids


def test_the_text_leaves_out_calls_and_outputs(tokenizer, monkeypatch) -> None:
    ids = [*b"a", PYTHON, *b"1+1", PYTHON_END, OUTPUT, *b"2", OUTPUT_END, *b"b", END]
    scripted(monkeypatch, *[answer(ids, forced=(6, 7, 8))] * 4)
    seen = []
    groups = sampled(ToyEnvironment(lambda problem, text: seen.append(text) or 0.5), tokenizer)
    [first, *_] = groups[0].rollouts
    assert seen == ["ab"] * 4
    assert first.text == "ab"
    assert first.parts == (Part("text", "a"), Part("python", "1+1"), Part("output", "2"), Part("text", "b"))
    assert first.num_calls == 1
    assert first.ids == tuple(ids)
    assert [i for i, forced in enumerate(first.is_forced) if forced] == [6, 7, 8]
    assert groups[0].rewards == [0.5, 0.5]


@pytest.mark.parametrize(
    ("completion", "has_ended"),
    [(answer([65, END]), True), (answer([65, BOS]), False), (answer([65, 66], "max_new_tokens"), False),
     (answer([65, END], "max_new_tokens"), False)],
)  # fmt: skip
def test_an_answer_that_does_not_end_has_no_value(tokenizer, monkeypatch, completion, has_ended) -> None:
    scripted(monkeypatch, *[completion] * 4)
    [first, _] = sampled(ToyEnvironment(lambda problem, text: 0.5), tokenizer)[0].rollouts
    assert (first.has_ended, first.reward.value, first.has_format) == (has_ended, 0.5 if has_ended else 0.0, has_ended)
    [first, _] = sampled(ToyEnvironment(lambda problem, text: 0.5), tokenizer, only_ended=False)[0].rollouts
    assert (first.has_ended, first.reward.value) == (has_ended, 0.5)


def test_a_prompt_without_room_has_no_answers_and_one_with_little_gets_less(tokenizer, monkeypatch) -> None:
    asked = scripted(monkeypatch, *[answer([END])] * 4)
    # The prompts have 6 ids; a row of 5 holds 6 with its last target, a row of 6 one more.
    assert [g.rollouts for g in sampled(ToyEnvironment(), tokenizer, seq_len=5)] == [(), ()]
    assert asked == []
    groups = sampled(ToyEnvironment(), tokenizer, seq_len=7)
    assert [r.max_new_tokens for r in asked] == [2] * 4
    assert all(len(g.rollouts) == 2 for g in groups)


def test_a_bad_reward_is_one_samples_own(tokenizer, monkeypatch) -> None:
    scripted(monkeypatch, answer([65, END]), answer([66, END]), answer([67, END]), answer([68, END]))
    rewards = {"A": 1.0, "B": math.nan, "C": None}
    groups = sampled(ToyEnvironment(lambda problem, text: rewards[text]), tokenizer)
    assert [group.rewards for group in groups] == [[1.0, None], [None, None]]
    assert [r.reward.invalid for g in groups for r in g.rollouts] == ["", "NaN", "None", "KeyError"]


def test_the_real_engine_at_temperature_zero_gives_the_text_of_one_alone(tokenizer, model) -> None:
    environment = ToyEnvironment()
    sampling = Sampling(seed=0, samples_per_prompt=2, max_new_tokens=6, seq_len=64, temperature=0.0)
    asked = [(i, environment.problem("train", i)) for i in range(3)]
    heard = []
    for group in sample_groups(model, environment, tokenizer, asked, sampling, beat=heard.append):
        prompt = list(group.rollouts[0].prompt_ids)
        alone = [ids[0] for ids in generate(model, prompt, max_new_tokens=6, temperature=0.0, stop_ids=range(256, 261))]
        assert [list(rollout.ids) for rollout in group.rollouts] == [alone, alone]
    assert heard[0] == "sampling 6 answers"
