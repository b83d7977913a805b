"""Rotary position embedding: each pair of numbers in a head is turned by an angle that grows with the position.

Su et al. 2021 (arXiv 2104.09864). A product of a turned query and a turned key depends on their distance only.

Shapes: T tokens, K head size, J = K/2 pairs.
"""

from __future__ import annotations

import torch


def rope_tables(num_positions: int, head_dim: int, *, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all angles, each (num_positions, head_dim/2) in float32, on the CPU.

    The angle of pair j at position t is ``t / base**(2j / head_dim)`` radians. Computed in float32 as the reference
    implementation in transformers does: a model trained here and exported there sees the same angles at every position.
    """
    pairs_J = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    inv_freq_J = 1.0 / (base ** (pairs_J / head_dim))
    positions_T = torch.arange(num_positions, dtype=torch.float32, device="cpu")
    angles_TJ = torch.outer(positions_T, inv_freq_J)
    return angles_TJ.cos(), angles_TJ.sin()


def rotate(x_BTHK: torch.Tensor, cos_TJ: torch.Tensor, sin_TJ: torch.Tensor) -> torch.Tensor:
    """Turn the heads of each token by the angles of its position; returns float32.

    Pair j is made of numbers j and j + K/2 (the "half split", not neighbours) and turns clockwise:
    ``(a, b) -> (a cos + b sin, b cos - a sin)``, the sign that the `nanochat` type in transformers has.

    In float32 throughout: for bf16 heads of 128 the error of ``q . k`` against float64 is then 0.026 (rms, of products
    of size 11), and 0.052 with tables and arithmetic in bf16. Compiled, the wider arithmetic is fused away.
    """
    a, b = x_BTHK.float().chunk(2, dim=-1)
    cos_TxJ = cos_TJ[:, None, :]
    sin_TxJ = sin_TJ[:, None, :]
    return torch.cat((a * cos_TxJ + b * sin_TxJ, b * cos_TxJ - a * sin_TxJ), dim=-1)
