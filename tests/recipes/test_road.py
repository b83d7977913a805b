"""The road from nothing to a chat: which stages are trained, with how many minutes, and where a stopped road goes on."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.recipes import road
from firstlight.recipes.record import new_record, new_run_dir, updated, write_run


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list:
    calls: list = []

    def train(settings, *, given):
        calls.append((type(settings).__name__, settings, given))

    for name in ("train_base", "train_mid", "train_sft"):
        monkeypatch.setattr(road, name, train)
    monkeypatch.setattr(road, "depth_for_minutes", lambda minutes: 3)

    class Nothing:
        def to_dict(self):
            return {}

    monkeypatch.setattr(road, "ask", lambda run, *, beside: (Nothing(), Nothing(), []))
    return calls


def test_each_stage_starts_from_the_one_before_and_all_fit_the_minutes(walked):
    road.walk("q", minutes=20, resume=False)
    kinds, settings, _ = zip(*walked, strict=True)
    assert kinds == ("BaseSettings", "MidSettings", "SftSettings")
    assert [each.run for each in settings] == ["q", "q-mid", "q-sft"]
    assert [settings[1].init, settings[2].init] == ["q", "q-mid"]
    assert settings[0].depth == 3
    assert sum(each.minutes for each in settings) < 20


def test_a_stopped_road_goes_on_in_the_stage_that_it_was_in(walked, own_folders):
    for name, status in (("q", "done"), ("q-mid", "stopped")):
        folder = new_run_dir(own_folders, name, prefix="")
        write_run(folder, updated(new_record(name), status=status))
    road.walk("q", minutes=20, resume=True)
    kinds, settings, given = zip(*walked, strict=True)
    assert kinds == ("MidSettings", "SftSettings")
    assert settings[0].resume
    assert given[0] == {"run", "resume"}
    assert not settings[1].resume


def test_a_road_that_goes_on_keeps_the_minutes_that_it_began_with(walked, own_folders):
    """56 of 100 minutes of the road are the base run's: one of 22.4 began a road of 40."""
    folder = new_run_dir(own_folders, "q", prefix="")
    record = new_record("q", config={"settings": {"minutes": 22.4}})
    write_run(folder, updated(record, status="done"))
    road.walk("q", minutes=None, resume=True)
    assert [each.minutes for _, each, _ in walked] == pytest.approx([0.18 * 40, 0.20 * 40])


def test_a_road_that_is_not_there_is_not_resumed(walked, own_folders):
    with pytest.raises(ConfigError, match="there is no run q"):
        road.walk("q", minutes=None, resume=True)
    assert walked == []


def test_a_name_that_a_later_stage_has_is_refused_before_the_first_is_trained(walked, own_folders):
    write_run(new_run_dir(own_folders, "q-mid", prefix=""), new_record("q-mid"))
    with pytest.raises(ConfigError, match="there is a run q-mid"):
        road.walk("q", minutes=20, resume=False)
    assert walked == []


def test_a_name_is_free_where_no_stage_has_it(tmp_path):
    (tmp_path / "quickstart-sft").mkdir()
    assert road.free_name(tmp_path) == "quickstart"
    assert road.free_name(tmp_path, suffixes=("", "-mid", "-sft")) == "quickstart-2"
