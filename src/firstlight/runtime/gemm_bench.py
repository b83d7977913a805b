"""How long matrix products take alone: the floor under a step that is made of them.

A `Gemm` names one product, its shape, how its operands lie in memory, and how often a step does it. The lists are made
by `firstlight.model.gemms` and `firstlight.optim.gemms`; here they are timed, on any device, with torch's own
`mm` and `bmm`, this process's threads and the dtype of the step.

`gemm_fraction` = time of all products of a step measured alone / time of the step. What counts: products of the
blocks' matrices, of the head, of attention's scores and values, of the optimizer's orthogonalization; forward and
both gradients. What does not: gates (a few columns wide), recomputation, casts, copies, everything element by element.
1 would be a step that does nothing but multiply, each product as fast as alone. Alone, operands are warmer in the caches
than in a step, so the figure rather flatters: a step may be at its limit somewhat below 1.

Shapes: a product is (M, K) x (K, N), ``batch`` of them at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

GemmKind = Literal["matrices", "head", "attention", "optimizer"]

SHARE_S = 0.004
"""Time that a shape gets in each round, at least; on a GPU that many seconds of queued products are timed as one."""


@dataclass(frozen=True)
class Gemm:
    """One matrix product of a step.

    count: how often the step does it. batch: products in one call (`torch.bmm`), 0 for a plain `torch.mm`.
    transpose_a, transpose_b: the operand is a transposed view of a row-major matrix: (K, M) and (N, K) in memory.
    stored_a: numbers between two rows of ``a`` in memory where it is a slice of a wider matrix; 0: none, it is whole.
    used_frac: share of the product that the step's kernel does: a fused causal kernel leaves out what is masked.
    """

    name: str
    kind: GemmKind
    m: int
    n: int
    k: int
    dtype: torch.dtype
    count: int = 1
    batch: int = 0
    transpose_a: bool = False
    transpose_b: bool = False
    stored_a: int = 0
    used_frac: float = 1.0

    @property
    def flops(self) -> int:
        """FLOPs of all ``count`` products, ``2 * count * batch * M * N * K``, what is masked included."""
        return 2 * self.count * max(1, self.batch) * self.m * self.n * self.k

    @property
    def shape(self) -> tuple[object, ...]:
        """What decides the time of one call: products that share it are measured once."""
        return self.m, self.n, self.k, self.dtype, self.batch, self.transpose_a, self.transpose_b, self.stored_a


def total_flops(gemms: Iterable[Gemm]) -> int:
    """FLOPs of a list of products, what is masked included."""
    return sum(gemm.flops for gemm in gemms)


class GemmBench:
    """Times a list of products in rounds, so that the rounds can take turns with what they are compared to.

    Leaves torch's random state as it was. Operands of all shapes are held until the bench is dropped.
    """

    def __init__(self, gemms: Sequence[Gemm], device: torch.device, *, share_s: float = SHARE_S) -> None:
        self.gemms = tuple(gemms)
        self._device = device
        self._share_s = share_s
        self._operands = {gemm.shape: operands_of(gemm, device) for gemm in gemms}
        self._times: dict[tuple[object, ...], list[float]] = {shape: [] for shape in self._operands}

    def run_round(self) -> None:
        """Time each shape once more: the median call of its share of time on a CPU, the mean call on a GPU."""
        for shape, (a, b, out) in self._operands.items():
            product = torch.bmm if a.ndim == 3 else torch.mm
            product(a, b, out=out)
            self._times[shape].append(
                self._time_queued(product, a, b, out) if self._is_queued else self._time(product, a, b, out)
            )

    @property
    def _is_queued(self) -> bool:
        return self._device.type in ("cuda", "mps")

    def _time(self, product, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
        times = []
        end = time.perf_counter() + self._share_s
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            product(a, b, out=out)
            times.append(time.perf_counter() - start)
        return median(times)

    def _time_queued(self, product, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
        calls = 4
        while True:
            self._wait()
            start = time.perf_counter()
            for _ in range(calls):
                product(a, b, out=out)
            self._wait()
            elapsed_s = time.perf_counter() - start
            if elapsed_s >= self._share_s or calls >= 4096:
                return elapsed_s / calls
            calls *= 4

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def call_s(self, gemm: Gemm) -> float:
        """Seconds of one call of a product: the median over the rounds."""
        return median(self._times[gemm.shape])

    def step_s(self, kinds: Iterable[GemmKind] | None = None) -> float:
        """Seconds of all products of a step (of some kinds), each as often as the step does it."""
        chosen = None if kinds is None else set(kinds)
        return sum(self.call_s(g) * g.count * g.used_frac for g in self.gemms if chosen is None or g.kind in chosen)

    def table(self) -> list[dict[str, object]]:
        """For each product of the list: name, kind, count, sizes, milliseconds a step, and the rate of one call in FLOP/s."""
        return [
            {
                "name": gemm.name,
                "kind": gemm.kind,
                "count": gemm.count,
                "batch": max(1, gemm.batch),
                "m": gemm.m,
                "n": gemm.n,
                "k": gemm.k,
                "ms": 1e3 * self.call_s(gemm) * gemm.count * gemm.used_frac,
                "flops_per_s": gemm.flops / gemm.count / self.call_s(gemm),
            }
            for gemm in self.gemms
        ]


def by_kind(gemms: Iterable[Gemm]) -> Mapping[str, int]:
    """FLOPs of a list of products by kind."""
    found: dict[str, int] = {}
    for gemm in gemms:
        found[gemm.kind] = found.get(gemm.kind, 0) + gemm.flops
    return found


def operands_of(gemm: Gemm, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``a`` (M, K), ``b`` (K, N) and room for the product (M, N), with ``batch`` in front, laid out as the step has them."""
    generator = torch.Generator().manual_seed(0)
    lead = (gemm.batch,) if gemm.batch else ()

    def stored(rows: int, columns: int, *, transposed: bool, width: int = 0) -> torch.Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        tensor = torch.randn(*lead, shape[0], max(shape[1], width), generator=generator).to(device, gemm.dtype)
        tensor = tensor[..., : shape[1]]
        return tensor.mT if transposed else tensor

    a = stored(gemm.m, gemm.k, transposed=gemm.transpose_a, width=gemm.stored_a)
    b = stored(gemm.k, gemm.n, transposed=gemm.transpose_b)
    return a, b, torch.empty(*lead, gemm.m, gemm.n, dtype=gemm.dtype, device=device)
