"""Micro-batches of a policy gradient with the real engine, model and step at a tiny size."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from ranks import run_ranks
from rl import toy
from rl.toy import CPU, ToyEnvironment

from firstlight.data.batch import IGNORE, Position
from firstlight.errors import ConfigError, DataError
from firstlight.infer.batch import Completion
from firstlight.optim.groups import AdamWGroup
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.rl import rollouts
from firstlight.rl.batches import MOST_STEPS_WITHOUT_REWARD, RolloutBatches
from firstlight.rl.order import problem_index
from firstlight.train.loss import summed_cross_entropy
from firstlight.train.step import train_step

SETTINGS = {
    "seed": 3, "prompts_per_step": 4, "samples_per_prompt": 3, "device_batch_size": 3, "seq_len": 40,
    "max_new_tokens": 6, "temperature": 1.0, "top_k": None, "only_ended": False,
}  # fmt: skip


def make(environment=None, *, model=None, runtime=CPU, seen=None, **changes) -> RolloutBatches:
    settings = {**SETTINGS, **changes}
    return RolloutBatches(
        model or toy.tiny_gpt(), environment or ToyEnvironment(), toy.byte_tokenizer(), runtime=runtime,
        on_step=(seen if seen is not None else []).append, **settings,
    )  # fmt: skip


def step_of(batches: RolloutBatches) -> list:
    return [next(batches) for _ in range(batches.num_micro_batches)]


def answers_in(batches) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(ids, weights) of every row's targets, in the order of the ids."""
    found = []
    for batch in batches:
        for ids, targets, weights in zip(
            batch.inputs_BT.tolist(), batch.targets_BT.tolist(), batch.weights_BT.tolist(), strict=True
        ):
            where = [t for t, target in enumerate(targets) if target != IGNORE]
            if where:
                prompt = tuple(ids[: where[0] + 1])
                found.append((prompt + tuple(targets[t] for t in where), tuple(weights[t] for t in where)))
    return sorted(found)


def gradients(model, batches) -> dict[str, torch.Tensor]:
    for batch in batches:
        summed_cross_entropy(
            model.hidden(batch.inputs_BT), model.lm_head.weight, batch.targets_BT, batch.weights_BT,
            softcap=model.config.softcap, compute_dtype=torch.float32,
        ).backward()  # fmt: skip
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_has_all_its_samples_with_their_advantages_as_weights() -> None:
    seen: list = []
    batches = make(seen=seen)
    step = step_of(batches)
    assert len(step) == 4
    assert [b.position.rows_consumed for b in step] == [3, 6, 9, 12]
    by_prompt: dict[tuple, list] = {}
    for ids, weights in answers_in(step):
        place = ids.index(259) + 1
        text = bytes(i for i in ids[place:] if i < 256).decode("utf-8", "replace")
        by_prompt.setdefault(ids[:place], []).append((toy.byte_sum(None, text), weights))  # pyrefly: ignore
    asked = {bytes(prompt[2:-2]).decode() for prompt in by_prompt}
    assert asked == {f"p{problem_index(p, 6, 3)}" for p in range(4)}
    for rows in by_prompt.values():
        mean = sum(reward for reward, _ in rows) / len(rows)
        for reward, weights in rows:
            assert weights == pytest.approx([reward - mean] * len(weights), abs=1e-6)
    [stats] = seen
    assert (stats.num_samples, stats.num_prompts, stats.step) == (12, 4, 0)
    assert stats.num_targets == sum(len(weights) for _, weights in answers_in(step))


def test_shapes_are_padded_to_what_a_micro_batch_needs() -> None:
    assert {tuple(b.inputs_BT.shape) for b in step_of(make())} == {(3, 32)}
    assert {tuple(b.inputs_BT.shape) for b in step_of(make(fixed_len=True))} == {(3, 40)}


def test_weights_that_changed_are_sampled_from_at_the_next_step_and_not_before() -> None:
    model = toy.tiny_gpt()
    batches = make(model=model, device_batch_size=12)
    first = next(batches)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5).add_(0.01)
    second = next(batches)
    assert second.position.rows_consumed == 24
    after = make(model=model, device_batch_size=12, position=Position(rows_consumed=12))
    assert torch.equal(next(after).targets_BT, second.targets_BT)
    assert not torch.equal(first.inputs_BT, second.inputs_BT)


def test_resuming_gives_the_same_batches() -> None:
    whole = make()
    for _ in range(2):
        last = step_of(whole)[-1]
    resumed = make(position=last.position)
    for a, b in zip(step_of(whole), step_of(resumed), strict=True):
        assert a.position == b.position
        for name in ("inputs_BT", "targets_BT", "weights_BT"):
            assert torch.equal(getattr(a, name), getattr(b, name))


def test_every_problem_is_asked_once_an_epoch_and_the_position_says_where() -> None:
    batches = make(prompts_per_step=3)
    positions = [step_of(batches)[-1].position for _ in range(4)]
    names = [batches.documents_of(Position(rows_consumed=9 * s), 9) for s in range(4)]
    assert Counter(names[0] + names[1]) == Counter(names[2] + names[3]) == Counter(f"train:{i}" for i in range(6))
    assert [(p.epoch, p.row, p.rows_consumed) for p in positions] == [(0, 3, 9), (1, 0, 18), (1, 3, 27), (2, 0, 36)]


def test_groups_without_a_signal_and_samples_without_a_reward_are_no_targets() -> None:
    good = make()
    reference = dict(answers_in(step_of(good)))
    spoilt, level = (f"p{problem_index(p, 6, 3)}" for p in (1, 2))
    calls: list[str] = []

    def reward(problem, text):
        asked = problem.messages[0].text
        if asked == level:
            return 0.4
        if asked == spoilt:
            calls.append(text)
            if len(calls) == 1:
                return math.nan
            if len(calls) == 2:
                raise RuntimeError("no")
        return toy.byte_sum(problem, text)

    seen: list = []
    step = step_of(make(ToyEnvironment(reward), seen=seen))
    rows = answers_in(step)
    assert len(rows) == 6, "two groups of three: one has nothing to compare, one has one reward left"
    for ids, weights in rows:
        assert weights == reference[ids]
    assert all(torch.isfinite(b.weights_BT).all() for b in step)
    assert len(step) == 4
    # Rows without a target come last, and are as short as can be.
    assert step[-1].inputs_BT.eq(256).all()
    [stats] = seen
    assert (stats.num_invalid, stats.invalid) == (2, {"NaN": 1, "RuntimeError": 1})
    assert stats.signal_frac == 0.5


def test_a_step_without_any_signal_leaves_the_weights_bit_unchanged() -> None:
    model = toy.tiny_gpt()
    optimizer = MuonAdamW([AdamWGroup("all", tuple(model.named_parameters()), 0.01, (0.9, 0.99), 1e-8)], CPU)
    before = {name: p.clone() for name, p in model.named_parameters()}
    batches = make(ToyEnvironment(lambda problem, text: 1.0), model=model)
    stats = train_step(model, optimizer, step_of(batches), CPU, Hyper())
    assert stats.is_empty
    assert "no targets" in (stats.skipped or "")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("value", [math.nan, None])
def test_nothing_but_bad_rewards_ends_after_a_few_steps(value) -> None:
    batches = make(ToyEnvironment(lambda problem, text: value))
    for _ in range(MOST_STEPS_WITHOUT_REWARD - 1):
        assert all(b.num_targets() == 0 for b in step_of(batches))
    with pytest.raises(DataError, match=r"no sample of toy had a reward in 3 steps.*12 N"):
        next(batches)


def test_several_updates_from_the_same_bad_answers_are_one_bad_step() -> None:
    batches = make(ToyEnvironment(lambda problem, text: None), clip=0.2, updates_per_rollout=2)
    for _ in range(2 * (MOST_STEPS_WITHOUT_REWARD - 1)):
        step_of(batches)
    with pytest.raises(DataError, match="no sample of toy had a reward in 3 steps"):
        next(batches)


def test_prompts_that_are_too_long_are_counted() -> None:
    seen: list = []
    batches = make(seen=seen, seq_len=5)
    assert all(b.num_targets() == 0 for b in step_of(batches))
    assert (seen[0].num_too_long, seen[0].num_samples) == (4, 0)


def rank_steps(runtime):
    """The step of this rank by plain policy gradient, and with clip and KL."""
    return rank_step(runtime, 0.0), rank_step(runtime, 0.1)


def rank_step(runtime, kl: float):
    """(answers, gradients, numbers, number of micro-batches) of one step of this rank."""
    seen: list = []
    model = toy.tiny_gpt()
    changes = {"kl": kl, "reference": toy.tiny_gpt(2), "clip": 0.2} if kl else {}
    batches = make(model=model, runtime=runtime, seen=seen, **changes)
    with batches:
        step = step_of(batches)
    values = {k: v for k, v in seen[0].to_dict().items() if not k.endswith("_s")}
    grads = {name: grad.numpy() for name, grad in gradients(model, step).items()}
    return answers_in(step), grads, values, len(step)


def test_two_ranks_sample_and_learn_what_one_does() -> None:
    for whole, *parts in zip(rank_steps(CPU), *run_ranks(rank_steps, 2), strict=True):
        one, gradient, values, num = whole
        assert [part[3] for part in parts] == [num // 2] * 2
        both = sorted(parts[0][0] + parts[1][0])
        assert [ids for ids, _ in both] == [ids for ids, _ in one]
        for (_, a), (_, b) in zip(both, one, strict=True):
            assert a == pytest.approx(b, abs=1e-6)
        for name, total in gradient.items():
            difference = abs(sum(part[1][name] for part in parts) - total).max()
            assert difference < 1e-6 * max(1.0, abs(total).max()), name
        for name, value in [item for part in parts for item in part[2].items()]:
            assert value == (pytest.approx(values[name], rel=1e-5) if isinstance(value, float | dict) else values[name])


def test_the_clip_changes_nothing_while_the_weights_are_those_that_sampled() -> None:
    seen: list = []
    plain, clipped = step_of(make()), step_of(make(clip=0.2, seen=seen))
    for a, b in zip(plain, clipped, strict=True):
        assert torch.equal(a.targets_BT, b.targets_BT)
        assert torch.allclose(a.weights_BT, b.weights_BT, atol=1e-5)
    assert seen[0].ratio_mean == pytest.approx(1.0, abs=1e-4)
    assert seen[0].clipped_frac == 0.0
    # A model whose choices are nearly even: the sampled estimate is near the exact entropy.
    assert seen[0].entropy_nats == pytest.approx(seen[0].exact_entropy_nats, rel=0.1)


def test_several_updates_of_the_same_samples_see_the_ratio_move() -> None:
    model = toy.tiny_gpt()
    seen: list = []
    batches = make(model=model, clip=0.2, updates_per_rollout=2, seen=seen)
    first = step_of(batches)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    second, third = step_of(batches), step_of(batches)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.targets_BT, b.targets_BT)
    assert [(s.step, s.update, s.clipped_frac > 0) for s in seen] == [(0, 0, False), (1, 1, True), (2, 0, False)]
    assert any(not torch.equal(a.targets_BT, b.targets_BT) for a, b in zip(first, third, strict=True))
    assert (second[-1].position.rows_consumed, third[-1].position.rows_consumed) == (24, 36)
    assert batches.documents_of(Position(rows_consumed=12), 12) == batches.documents_of(Position(), 12)
    assert batches.documents_of(Position(rows_consumed=24), 12) != batches.documents_of(Position(), 12)


def test_kl_to_itself_is_nothing_and_keeps_groups_without_a_signal() -> None:
    model = toy.tiny_gpt()
    seen: list = []
    level = ToyEnvironment(lambda problem, text: 1.0)
    same = step_of(make(level, model=model, kl=0.5, reference=model, seen=seen))
    assert sum(int(b.num_targets()) for b in same) > 0
    assert all(b.weights_BT.abs().max() == 0 for b in same)
    assert seen[0].kl_nats == 0.0
    other = step_of(make(level, model=model, kl=0.5, reference=toy.tiny_gpt(2), seen=seen))
    assert any(b.weights_BT.abs().max() > 0 for b in other)
    assert seen[1].kl_nats > 0


def test_what_the_python_tool_writes_is_no_target(monkeypatch) -> None:
    """The engine's place is taken by one that always writes the same call; the tool and its calculator are real."""
    first, second = [*b"a", 261, *b"6*7", 262], [*b"=", 260]

    def complete(model, requests, *, max_rows, progress):
        answers = []
        for n, request in enumerate(requests):
            tool = request.tool()
            forced = [i for token_id in first for i in tool.after(token_id)]
            ids = [*first, *forced, *second, n][: len(first) + len(forced) + len(second)]
            is_forced = [len(first) <= i < len(first) + len(forced) for i in range(len(ids))]
            answers.append(Completion(ids, [-1.0] * len(ids), is_forced, "stop_id"))
        return answers

    monkeypatch.setattr(rollouts, "complete", complete)
    rewards = iter(float(n % 2) for n in range(100))
    environment = ToyEnvironment(lambda problem, text: next(rewards) if text == "a=" else -1.0, uses_python=True)
    seen: list = []
    with make(environment, max_new_tokens=30, seen=seen) as batches:
        [batch, *_] = step_of(batches)
    assert batch.inputs_BT[0, 6:18].tolist() == [*b"a", 261, *b"6*7", 262, 263, *b"42", 264, *b"=", 256]
    assert batch.targets_BT[0, 5:17].tolist() == [*b"a", 261, *b"6*7", 262, *[IGNORE] * 4, *b"=", 260]
    assert batch.weights_BT[0, 5:17].count_nonzero() == 8
    assert seen[0].calls_mean == 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples_per_prompt": 1}, "--samples-per-prompt 1 is too small"),
        ({"prompts_per_step": 0}, "--prompts-per-step 0 is too small"),
        ({"device_batch_size": 5}, "no multiple of --device-batch-size 5"),
        ({"seq_len": 65}, "--max-seq-len 65 is more than the model's context of 64"),
        ({"temperature": 0.0}, "--temperature 0"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"clip": 0.0}, "--clip 0 leaves no range"),
        ({"clip_high": 0.3}, "--clip-high without --clip"),
        ({"kl": 0.1}, "needs a reference model"),
        ({"kl": -0.1}, "--kl -0.1 is not possible"),
        ({"scale": "both"}, "'both' is not known"),
        ({"updates_per_rollout": 2}, "without --clip"),
        ({"position": Position(rows_consumed=5)}, "5 samples is not at the start of a step of 12"),
    ],
)
def test_values_without_meaning_are_named(changes, says) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert says in str(caught.value)


def test_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError, match="2 things are wrong"):
        make(samples_per_prompt=1, temperature=0.0)


def test_an_environment_without_problems_is_refused() -> None:
    with pytest.raises(DataError, match="toy has no problem"):
        make(ToyEnvironment(num=0))
