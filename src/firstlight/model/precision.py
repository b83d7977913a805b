"""The dtype policy of the model's matmuls: float32 weights, products in the compute dtype. No autocast anywhere."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

NORM_EPS = 1e-6
"""Keeps the norm of an all-zero vector zero. The value of the `nanochat` type in transformers, so that logits agree."""


class Linear(nn.Module):
    """``x @ weight.T`` without bias: the weight is kept in float32 and cast to the compute dtype for the product.

    The gradient comes back through the cast, so it is summed over micro-batches in float32. Where the weight is already
    in the compute dtype (a copy made for decoding) the cast costs nothing.

    A new weight is all NaN: a model that nobody initialised or loaded cannot be mistaken for one that works.
    """

    def __init__(self, in_features: int, out_features: int, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.compute_dtype = compute_dtype
        self.weight = nn.Parameter(torch.full((out_features, in_features), float("nan"), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Product over the last axis: (..., in_features) -> (..., out_features), in the compute dtype."""
        return functional.linear(x.to(self.compute_dtype), self.weight.to(self.compute_dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, compute_dtype={self.compute_dtype}"


class Embedding(nn.Module):
    """Rows of a float32 table, looked up by id. A new table is all NaN, as in `Linear`."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.width = width
        self.weight = nn.Parameter(torch.full((num_rows, width), float("nan"), dtype=torch.float32))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows for int64 ids of any shape: (...) -> (..., width), float32."""
        return functional.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_rows}, {self.width}"


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Divide by the root mean square of the last axis; no weights. Accumulates in float32, returns the dtype of ``x``.

    Zhang & Sennrich 2019 (arXiv 1910.07467), without the gain.
    """
    return functional.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)
