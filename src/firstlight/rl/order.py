"""Which problem is asked when, and with which seed: pure functions, so that a resumed run and any number of processes agree.

Prompt number p counts from the start of training, over all processes. An epoch is a seeded permutation of the environment's
training problems.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from firstlight.data.shuffle import mix_seed, seeded_permutation


def problem_index(prompt: int, num_problems: int, seed: int) -> int:
    """Index among the training problems of prompt number ``prompt``."""
    epoch, place = divmod(prompt, num_problems)
    return int(_permutation(num_problems, mix_seed(seed, "problems", epoch))[place])


@lru_cache(maxsize=4)
def _permutation(num: int, seed: int) -> np.ndarray:
    return seeded_permutation(num, seed)


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of the text that answers prompt ``prompt`` for the ``sample``-th time: 63 bits, which every generator takes."""
    return mix_seed(seed, "sample", prompt, sample) >> 1


def prompts_of_rank(first: int, count: int, *, rank: int, world_size: int) -> list[int]:
    """Of the prompts first ... first + count - 1 those that a rank samples: p with p % world_size == rank.

    >>> prompts_of_rank(4, 4, rank=1, world_size=2)
    [5, 7]
    """
    return [prompt for prompt in range(first, first + count) if prompt % world_size == rank]
