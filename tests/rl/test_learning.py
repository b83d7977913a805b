"""The whole of it on a toy: with the real engine and step, the reward rises."""

from __future__ import annotations

import pytest
from rl import toy
from rl.toy import CPU, ToyEnvironment

from firstlight.optim.groups import AdamWGroup
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.rl.batches import RolloutBatches
from firstlight.train.step import train_step


def share_of_small_letters(problem, text: str) -> float:
    """By chance about a tenth: 26 of 265 ids."""
    return sum("a" <= c <= "z" for c in text) / max(1, len(text))


def rewards_of_training(seed: int, *, num_updates: int, **options) -> tuple[float, float]:
    """Mean reward of the first and the last four steps."""
    model = toy.tiny_gpt(seed)
    seen: list = []
    batches = RolloutBatches(
        model, ToyEnvironment(share_of_small_letters), toy.byte_tokenizer(), runtime=CPU, seed=seed,
        prompts_per_step=2, samples_per_prompt=16, device_batch_size=32, seq_len=12, max_new_tokens=4,
        only_ended=False, on_step=seen.append, **options,
    )  # fmt: skip
    optimizer = MuonAdamW([AdamWGroup("all", tuple(model.named_parameters()), 0.03, (0.9, 0.99), 1e-8)], CPU)
    for _ in range(num_updates):
        stats = train_step(model, optimizer, [next(batches)], CPU, Hyper())
        # When every answer is as good as can be there is nothing left to learn.
        assert stats.skipped is None or stats.is_empty
    assert seen[-1].entropy_nats < seen[0].entropy_nats
    rewards = [stats.reward_mean for stats in seen]
    return sum(rewards[:4]) / 4, sum(rewards[-4:]) / 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises(seed: int) -> None:
    first, last = rewards_of_training(seed, num_updates=20)
    assert first < 0.3
    assert last > 0.75


def test_the_reward_rises_with_clip_kl_and_several_updates() -> None:
    options = {"kl": 0.02, "reference": toy.tiny_gpt(0), "clip": 0.2, "scale": "std", "updates_per_rollout": 2}
    first, last = rewards_of_training(0, num_updates=30, **options)
    assert first < 0.35
    assert last > 2 * first
