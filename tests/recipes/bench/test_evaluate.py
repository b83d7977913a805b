"""The evaluation benchmark scores each made-up token once a round."""

from __future__ import annotations

from firstlight.recipes.bench.evaluate import bench_eval, random_documents


def test_rates_are_of_all_tokens(tiny_options, cpu) -> None:
    report = bench_eval(tiny_options, cpu, num_tokens=500)
    found = report.figures["eager"]
    assert abs(found["tokens_per_s"] * found["elapsed_s"] - 500) < 1e-6
    assert "compiled" not in report.figures


def test_documents_have_the_asked_tokens_in_all() -> None:
    documents = random_documents(3000, vocab_size=50, seed=0)
    assert sum(map(len, documents)) == 3000
    assert all(1 <= int(d.ids.min()) <= int(d.ids.max()) < 50 for d in documents)
    assert len({len(d) for d in documents}) > 2
