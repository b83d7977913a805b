"""Operands of a timed product have the shapes and the layout that the list names; sums are weighted as they should be."""

from __future__ import annotations

import pytest
import torch

from firstlight.runtime.gemm_bench import Gemm, GemmBench, by_kind, total_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layout_is_run_as_it_is_named(
    batch: int, transpose_a: bool, transpose_b: bool, dtype: torch.dtype
) -> None:
    gemm = Gemm("p", "head", 5, 7, 3, dtype, batch=batch, transpose_a=transpose_a, transpose_b=transpose_b)
    bench = GemmBench([gemm], CPU, share_s=0.0)
    bench.run_round()
    a, b, out = bench._operands[gemm.shape]
    lead = (batch,) if batch else ()
    assert a.shape == (*lead, 5, 3)
    assert b.shape == (*lead, 3, 7)
    assert a.stride()[-2:] == ((1, 5) if transpose_a else (3, 1))
    assert b.stride()[-2:] == ((1, 3) if transpose_b else (7, 1))
    assert {a.dtype, b.dtype, out.dtype} == {dtype}
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=2e-2, atol=5e-2)


def test_a_slice_of_a_wider_matrix_keeps_its_rows_apart() -> None:
    gemm = Gemm("dW", "head", 4, 6, 10, torch.float32, transpose_a=True, stored_a=9)
    a, _, _ = GemmBench([gemm], CPU)._operands[gemm.shape]
    assert a.shape == (4, 10)
    assert a.stride() == (1, 9)


def test_a_step_is_the_sum_of_its_products_each_as_often_as_it_is_done() -> None:
    often = Gemm("often", "matrices", 8, 8, 8, torch.float32, count=10)
    masked = Gemm("masked", "attention", 8, 8, 16, torch.float32, count=2, used_frac=0.5)
    same = Gemm("same shape", "head", 8, 8, 8, torch.float32)
    bench = GemmBench([often, masked, same], CPU)
    assert len(bench._operands) == 2
    # Times as if measured: the median of the rounds counts.
    bench._times = {often.shape: [1.0, 9.0, 2.0], masked.shape: [4.0]}
    assert bench.call_s(often) == 2.0
    assert bench.step_s() == 10 * 2.0 + 2 * 0.5 * 4.0 + 2.0
    assert bench.step_s(["attention"]) == 4.0
    rows = bench.table()
    assert [row["ms"] for row in rows] == [20_000.0, 4_000.0, 2_000.0]
    assert rows[0]["flops_per_s"] == 2 * 8**3 / 2.0


def test_flops_count_every_product_of_a_batch() -> None:
    gemms = [Gemm("a", "head", 2, 3, 5, torch.float32, count=7, batch=11), Gemm("b", "head", 1, 1, 1, torch.float32)]
    assert total_flops(gemms) == 2 * 2 * 3 * 5 * 7 * 11 + 2
    assert by_kind(gemms) == {"head": total_flops(gemms)}


def test_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    bench = GemmBench([Gemm("a", "head", 2, 3, 5, torch.float32)], CPU, share_s=0.0)
    bench.run_round()
    assert bench.step_s() > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_queued_products_are_timed_on_a_gpu() -> None:
    gemm = Gemm("a", "head", 1024, 1024, 1024, torch.bfloat16)
    bench = GemmBench([gemm], torch.device("cuda"))
    bench.run_round()
    assert 1e11 < gemm.flops / bench.step_s() < 1e16
