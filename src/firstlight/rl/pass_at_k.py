"""pass@k: the chance that at least one of k samples is right, without bias, from n >= k samples of a problem.

With c of the n samples right, a draw of k of them without replacement misses them all with probability
C(n - c, k) / C(n, k), so

    pass@k = 1 - C(n - c, k) / C(n, k)

averaged over problems (Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374, eq. 1).
``1 - (1 - c/n)^k`` would be too low.
"""

from __future__ import annotations

from math import comb


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate for one problem. Raises ValueError for k or counts that are not possible.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)
    """
    if not 0 <= num_right <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right ones among {num_samples} samples is not defined")
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def powers_of_two(num_samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... below ``num_samples``, and ``num_samples``: the k that are shown.

    >>> powers_of_two(8), powers_of_two(6), powers_of_two(1)
    ((1, 2, 4, 8), (1, 2, 4, 6), (1,))
    """
    ks = [1]
    while ks[-1] * 2 < num_samples:
        ks.append(ks[-1] * 2)
    if ks[-1] != num_samples:
        ks.append(num_samples)
    return tuple(ks)
