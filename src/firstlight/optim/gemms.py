"""The matrix products of one call of `MuonAdamW.step`: a list, from shapes and polynomials alone.

Only Muon multiplies matrices. Per stack of K matrices (M, N) and per group of polynomials (`muon.gram_cycles`) it takes the
direct form or the Gram form, whichever is less work, as `muon.orthogonalize` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from firstlight.optim import muon
from firstlight.optim.groups import Group, MuonGroup
from firstlight.runtime.gemm_bench import Gemm


def orthogonalize_gemms(
    num: int, rows: int, columns: int, *, dtype: torch.dtype, coefficients: muon.Coefficients, safety: bool
) -> list[Gemm]:
    """Products of `muon.orthogonalize` on a stack of ``num`` matrices (rows, columns).

    dtype: of the products. coefficients, safety: as `muon.orthogonalize` takes them.
    """
    if safety:
        coefficients = muon.safe_coefficients(coefficients)
    m, n = min(rows, columns), max(rows, columns)
    times: Counter[str] = Counter()
    for cycle in muon.gram_cycles(coefficients):
        p = len(cycle)
        is_gram = muon.gram_products(m, n, p) < muon.direct_products(m, n, p)
        times["X X^T"] += 1 if is_gram else p
        times["B X"] += 1 if is_gram else p
        # Gram form: G G for each polynomial, P Q for each but the first, P G P (two products) for each but the last.
        times["square"] += p + 3 * (p - 1) if is_gram else p
    sizes = {"X X^T": (m, m, n, True), "square": (m, m, m, False), "B X": (m, n, m, False)}
    return [
        Gemm(
            f"orthogonalize {num}x({rows},{columns}) {name}", "optimizer", M, N, K, dtype, times[name], num,
            transpose_b=transposed,
        )
        for name, (M, N, K, transposed) in sizes.items()
    ]  # fmt: skip


def optimizer_gemms(
    groups: Iterable[Group], *, dtype: torch.dtype, coefficients: muon.Coefficients = muon.POLAR_EXPRESS_4
) -> list[Gemm]:
    """Products of one optimizer step over all groups. dtype: Muon's (`MuonAdamW`)."""
    found = []
    for group in groups:
        if isinstance(group, MuonGroup) and group.parameters:
            rows, columns = group.parameters[0][1].shape
            found += orthogonalize_gemms(
                len(group.parameters), rows, columns, dtype=dtype, coefficients=coefficients,
                safety=muon.needs_safety(coefficients),
            )  # fmt: skip
    return found
