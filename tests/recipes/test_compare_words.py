"""Tables of a comparison as text."""

from __future__ import annotations

from comparable import make_run

from firstlight.recipes.compare import compare_runs
from firstlight.recipes.compare_words import final_rows, needed_rows, show_flops


def test_the_final_numbers(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2)
    make_run(tmp_path, "c", seed=1, bpb=2.2, plan_lr=0.1, status="stopped")
    columns, rows = final_rows(compare_runs(["a", "b", "c"], tmp_path, usd_per_hour=30))
    assert columns == ["setting", "bpb ± se", "seeds spread by", "steps", "tokens", "FLOPs", "time", "US dollars"]
    assert rows[0][0] == "a and 1 more"
    assert rows[0][2].endswith("(2 seeds)")
    assert rows[0][3:] == ["100", "100K", "1.00e11", "2 min 00 s", "1.00"]
    assert rows[1] == ["c", "-", "-", "-", "-", "-", "2 min 00 s", "1.00"]


def test_without_seeds_or_a_price_their_columns_are_left_out(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "c", plan_lr=0.1)
    assert final_rows(compare_runs(["a", "c"], tmp_path))[0] == [
        "setting",
        "bpb ± se",
        "steps",
        "tokens",
        "FLOPs",
        "time",
    ]


def test_amounts_are_shown_as_parts_of_the_baselines(tmp_path):
    make_run(tmp_path, "a", noise=0)
    make_run(tmp_path, "c", bpb=3.0, plan_lr=0.1, noise=0)
    make_run(tmp_path, "d", bpb=2.0, plan_lr=0.2, noise=0, curve_shift=-0.5)
    columns, rows = needed_rows(compare_runs(["a", "c", "d"], tmp_path))
    assert columns == ["setting", "to reach a's bpb of", "tokens", "FLOPs", "training minutes"]
    assert rows[0][2:] == ["not reached"] * 3
    assert rows[1][2].endswith(" %)")
    assert rows[1][1].endswith("on 50 documents")


def test_flops_are_short():
    assert [show_flops(x) for x in (None, 1.234e14, 5e9)] == ["-", "1.23e14", "5.00e09"]
