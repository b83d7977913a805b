"""Prompts and seeds as functions of numbers: each problem once an epoch, each prompt on one rank, no seed twice."""

from __future__ import annotations

from firstlight.rl.order import problem_index, prompts_of_rank, sample_seed


def test_each_epoch_asks_every_problem_once_in_an_order_of_its_own() -> None:
    epochs = [[problem_index(prompt, 50, seed=1) for prompt in range(50 * e, 50 * e + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [problem_index(prompt, 50, seed=2) for prompt in range(50)] != epochs[0]


def test_the_order_can_be_asked_anywhere() -> None:
    forwards = [problem_index(prompt, 7, seed=1) for prompt in range(30)]
    assert [problem_index(prompt, 7, seed=1) for prompt in reversed(range(30))] == forwards[::-1]


def test_ranks_divide_the_prompts() -> None:
    for world_size in (1, 2, 3):
        parts = [prompts_of_rank(6, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sorted(prompt for part in parts for prompt in part) == list(range(6, 12))
        assert {len(part) for part in parts} == {6 // world_size}


def test_seeds_differ_and_fit_a_generator() -> None:
    seeds = {sample_seed(seed, prompt, sample) for seed in range(3) for prompt in range(40) for sample in range(8)}
    assert len(seeds) == 3 * 40 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
