"""`firstlight quickstart`: the built-in text, a time limit, a name that is free."""

from __future__ import annotations

from firstlight.cli import main
from firstlight.recipes import base
from firstlight.runtime import precision


def test_quickstart_trains_on_the_built_in_text_by_the_clock_under_a_free_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path))
    calls = []
    monkeypatch.setattr(base, "train_base", lambda settings, *, given: calls.append((settings, given)))
    monkeypatch.setattr(precision, "expected_flops_per_s", lambda device, dtype: 100e9)
    assert main.run(["quickstart"]) == 0
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart-2").mkdir()
    assert main.run(["quickstart", "--minutes", "7"]) == 0
    first, second = (settings for settings, _ in calls)
    assert (first.run, first.data, first.resume) == ("quickstart", "builtin", False)
    assert 3 <= first.minutes <= 5, "the README promises about five minutes"
    # Half of 100 GFLOP/s for 3 of 4.5 minutes is 9e12: 0.79 M parameters, where depth 2 has 0.66 M and depth 3 2.11 M.
    assert first.depth == 2
    assert (second.run, second.minutes) == ("quickstart-3", 7)


def test_quickstart_resumes_the_run_that_is_named(monkeypatch):
    calls = []
    monkeypatch.setattr(base, "train_base", lambda settings, *, given: calls.append((settings, given)))
    assert main.run(["quickstart", "--run", "mine", "--resume"]) == 0
    settings, given = calls[0]
    assert (settings.run, settings.resume) == ("mine", True)
    assert {"run", "resume"} <= given
    assert "depth" not in given, "the run keeps its own"
