"""The optimizer's benchmark updates every parameter of the real model."""

from __future__ import annotations

from firstlight.recipes.bench.optim import bench_optim


def test_figures_of_one_optimizer_step(tiny_options, cpu) -> None:
    report = bench_optim(tiny_options, cpu)
    f = report.figures
    # Depth 1, width 64: matrices 12 D^2, embedding, head and one value embedding V D each; gates 16 + 16; 5 scalars.
    matrices, tables = 12 * 64 * 64, 3 * 96 * 64
    assert f["num_params"] - matrices - tables < 64
    assert f["x_products"] == f["optimizer_ms"] / f["products_ms"]
    assert f["products_flops"] > 0
    assert f["muon_dtype"] == "float32"
