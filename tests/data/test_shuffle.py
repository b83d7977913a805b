from __future__ import annotations

import numpy as np

from firstlight.data.shuffle import mix_seed, seeded_permutation


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator in plain Python integers."""
    mask = 2**64 - 1
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_order_is_that_of_splitmix64_keys():
    # The generator's first output for seed 1234567 is widely published.
    assert splitmix64(1234567, 1) == [6457827717110365317]
    for seed in (0, 1234567, 2**64 - 1):
        keys = splitmix64(seed, 100)
        assert seeded_permutation(100, seed).tolist() == sorted(range(100), key=keys.__getitem__)


def test_all_sizes_give_permutations():
    for n in (0, 1, 2, 1000):
        assert sorted(seeded_permutation(n, 7).tolist()) == list(range(n))


def test_positions_are_spread_evenly():
    places = np.array([seeded_permutation(10, mix_seed("spread", i))[0] for i in range(2000)])
    counts = np.bincount(places, minlength=10)
    # Chi-square with 9 degrees of freedom: 27.9 is exceeded with probability 0.001.
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_parts_of_a_seed_are_kept_apart():
    assert len({mix_seed(1, 23), mix_seed(12, 3), mix_seed(123), mix_seed("1", "2", "3"), mix_seed(3, 12)}) == 5
