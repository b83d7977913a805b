"""The decoding benchmark generates what it says, for one sample and for 32."""

from __future__ import annotations

from firstlight.recipes.bench.decode import bench_decode


def test_tokens_and_steps_agree(tiny_options, cpu) -> None:
    report = bench_decode(tiny_options, cpu)
    f = report.figures
    # The context of 33 leaves 25 tokens behind a prompt of 8.
    assert (f["prompt_tokens"], f["new_tokens"]) == (8, 25)
    for batch in (1, 32):
        found = f[f"batch_{batch}"]
        assert abs(found["tokens_per_s"] * found["step_ms"] / 1e3 - batch) < 1e-9 * batch
        assert found["first_token_ms"] > 0
