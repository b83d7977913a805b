"""The whole comparison: the right verdict on a better, a worse and an identical setting; mistakes."""

from __future__ import annotations

import json

import pytest
from comparable import make_run

from firstlight.errors import ConfigError
from firstlight.recipes.compare import compare_runs


@pytest.fixture
def runs_dir(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path, f"base-s{seed}", seed=seed, bpb=2.0 + 0.002 * (seed - 2))
        make_run(tmp_path, f"bad-s{seed}", seed=seed + 10, bpb=2.03 + 0.002 * (seed - 2), plan_lr=0.005)
        make_run(tmp_path, f"good-s{seed}", seed=seed + 20, bpb=1.97 + 0.002 * (seed - 2), plan_lr=0.04)
        make_run(tmp_path, f"same-s{seed}", seed=seed + 30, bpb=2.0 + 0.002 * (seed - 2))
    return tmp_path


def three(name):
    return ",".join(f"{name}-s{i}" for i in (1, 2, 3))


def test_better_worse_and_identical_settings_are_told_apart(runs_dir):
    found = compare_runs([three(name) for name in ("base", "bad", "good", "same")], runs_dir)
    assert [one.difference.outcome for one in found.verdicts] == ["a is better", "b is better", "no difference shown"]
    says = [found.sentence(one) for one in found.verdicts]
    assert says[0].startswith("base-s{1,2,3} is better by 0.03")
    assert says[1].startswith("good-s{1,2,3} is better by 0.0")
    assert says[2].startswith("no difference shown between base-s{1,2,3} and same-s{1,2,3}")
    assert "3 and 3 seeds" in found.small_print(found.verdicts[0])[0]
    assert any("3 intervals of 95 % each" in note for note in found.notes)


def test_final_numbers_are_means_over_seeds(runs_dir):
    found = compare_runs([three("base"), three("bad")], runs_dir, usd_per_hour=3.0)
    base = found.final[0]
    assert base.bpb == pytest.approx(2.0, abs=0.002)
    assert base.spread == pytest.approx(0.002, abs=0.0015)
    assert (base.tokens, base.flops, base.minutes, base.usd) == pytest.approx((1e5, 1e11, 2.0, 0.1))
    assert compare_runs([three("base"), three("bad")], runs_dir).final[0].usd is None


def test_it_is_strict_json(runs_dir):
    found = compare_runs(["base-s1", "bad-s1"], runs_dir)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    (verdict,) = values["verdicts"]
    assert verdict["outcome"] == "a is better"
    assert verdict["difference"]["seed_noise"] == "not in it"
    assert values["groups"][0] == {"name": "base-s1", "runs": ["base-s1"], "seeds": [1]}


def test_one_seed_each_hears_how_far_seeds_lie_apart_elsewhere(runs_dir):
    found = compare_runs(["good-s1", "bad-s1", three("base")], runs_dir)
    assert "two seeds of base-s{1,2,3} differ by 0.00" in found.small_print(found.verdicts[0])[0]


def test_two_seeds_of_one_setting_hear_that_they_are(runs_dir):
    found = compare_runs(["base-s1", "base-s2"], runs_dir, group=False)
    assert "what seeds make" in found.small_print(found.verdicts[0])[1]
    found = compare_runs(["base-s1", "bad-s2"], runs_dir, group=False)
    assert len(found.small_print(found.verdicts[0])) == 1


def test_there_must_be_two_settings(runs_dir):
    with pytest.raises(ConfigError, match="name at least two runs"):
        compare_runs(["base-s1"], runs_dir)
    with pytest.raises(ConfigError, match="there is one setting here") as caught:
        compare_runs(["base-s1", "base-s2"], runs_dir)
    assert "--no-group" in caught.value.hint
    assert len(compare_runs(["base-s1", "base-s2"], runs_dir, group=False).groups) == 2
    with pytest.raises(ConfigError, match="--usd-per-hour -1"):
        compare_runs(["base-s1", "bad-s1"], runs_dir, usd_per_hour=-1)


def test_curves_of_scores_that_cannot_be_compared_are_not_set_against_each_other(runs_dir):
    make_run(runs_dir, "other", val_hash="9" * 64)
    assert len(compare_runs(["base-s1", "bad-s1"], runs_dir).needed) == 1
    assert compare_runs(["base-s1", "other"], runs_dir).needed == ()
