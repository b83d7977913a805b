"""The loader's benchmark reads a real store of made-up text."""

from __future__ import annotations

import json

from firstlight.recipes.bench.data import bench_data, write_texts


def test_both_packings_are_measured_and_lose_nothing(tiny_options, cpu) -> None:
    report = bench_data(tiny_options, cpu, shard_bytes=20_000, round_s=0.01)
    for packing in ("bestfit", "stream"):
        found = report.figures[packing]
        assert found["rows_per_s"] > 0
        assert found["tokens_per_s"] == found["rows_per_s"] * 33
        assert found["tokens_lost_frac"] == 0.0
    assert report.figures["text_bytes"] >= 2 * 20_000
    assert "made up" in report.notes[0]


def test_made_up_text_is_the_same_for_a_seed(tmp_path) -> None:
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_texts(tmp_path / name, shard_bytes=5_000, num_shards=2, seed=4)
        texts.append([path.read_text() for path in sorted((tmp_path / name).iterdir())])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]
    sizes = [sum(len(json.loads(line)["text"]) for line in text.splitlines()) for text in texts[0]]
    assert min(sizes) >= 5_000
