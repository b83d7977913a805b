"""Seeded permutations that are the same on every machine and with every version of NumPy.

NumPy keeps the right to change its generators' streams between versions (NEP 19), which would silently change what a
resumed run trains on. So the keys come from SplitMix64 (Steele, Lea, Flood 2014), written out here.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15


def mix_seed(*parts: int | str) -> int:
    """A 64-bit seed from several values (the run's seed, a purpose, an epoch, a shard): blake2b of their text."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def seeded_permutation(n: int, seed: int) -> np.ndarray:
    """A permutation of range(n), int64, shape (n,): the stable order of n SplitMix64 keys that ``seed`` starts."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.argsort(z, kind="stable").astype(np.int64)
