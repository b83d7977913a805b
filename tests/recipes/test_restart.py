"""After a restart by torchrun the same command line resumes, whether or not it names the run."""

from __future__ import annotations

import pytest

from firstlight.recipes.record import list_runs, new_record, new_run_dir, write_run
from firstlight.recipes.restart import forget_run, remember_run, settings_for_attempt
from firstlight.recipes.settings import BaseSettings

ASKED = BaseSettings(depth=2, num_iterations=9)
GIVEN = frozenset({"depth", "num_iterations"})


@pytest.fixture
def attempt(monkeypatch):
    """Makes this process one of attempt number n (0 is the first) of a launch."""

    def become(restarts: int, launch: str | None = "abc") -> None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "5")
        if launch is None:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        else:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)

    return become


def test_the_first_attempt_is_what_the_command_line_says(attempt, tmp_path):
    attempt(0)
    (tmp_path / ".launch-abc").write_text("d2-texts-1\n")
    assert settings_for_attempt(ASKED, GIVEN, tmp_path, attempt=1) == (ASKED, GIVEN, [])


def test_without_torchrun_nothing_changes_and_nothing_is_written(attempt, tmp_path):
    attempt(0, None)
    remember_run(tmp_path, "d2-texts-1")
    assert list(tmp_path.iterdir()) == []
    assert settings_for_attempt(ASKED, GIVEN, tmp_path, attempt=1) == (ASKED, GIVEN, [])
    forget_run(tmp_path)


def test_a_restart_resumes_the_run_that_is_named(attempt, tmp_path):
    attempt(1)
    remember_run(tmp_path, "mine")
    named = BaseSettings(depth=2, num_iterations=9, run="mine")
    settings, given, notes = settings_for_attempt(named, GIVEN | {"run"}, tmp_path, attempt=2)
    assert (settings.run, settings.resume) == ("mine", True)
    assert given == {"depth", "num_iterations", "run", "resume"}
    assert len(notes) == 1
    assert "attempt 2" in notes[0]
    assert "mine" in notes[0]


def test_a_run_of_another_launch_that_the_first_attempt_refused_is_not_resumed_by_the_second(attempt, tmp_path):
    attempt(1)
    named = BaseSettings(run="of-last-week")
    assert settings_for_attempt(named, frozenset({"run"}), tmp_path, attempt=2)[0].resume is False
    remember_run(tmp_path, "another")
    assert settings_for_attempt(named, frozenset({"run"}), tmp_path, attempt=2)[0] == named


def test_a_restart_without_a_name_finds_the_run_of_the_first_attempt(attempt, tmp_path):
    attempt(0)
    remember_run(tmp_path, "d2-texts-7")
    attempt(3)
    settings, given, notes = settings_for_attempt(ASKED, GIVEN, tmp_path, attempt=4)
    assert (settings.run, settings.resume) == ("d2-texts-7", True)
    assert {"run", "resume"} <= given
    assert "attempt 4" in notes[0]


def test_another_launch_does_not_find_it(attempt, tmp_path):
    attempt(0)
    remember_run(tmp_path, "d2-texts-7")
    attempt(1, "other")
    settings, _, notes = settings_for_attempt(ASKED, GIVEN, tmp_path, attempt=2)
    assert (settings.run, settings.resume) == (None, False)
    assert "no run had begun" in notes[0]


def test_a_damaged_note_is_no_note(attempt, tmp_path):
    attempt(1)
    for content in (b"", b"\xff\xfe\x00"):
        (tmp_path / ".launch-abc").write_bytes(content)
        assert settings_for_attempt(ASKED, GIVEN, tmp_path, attempt=2)[0].resume is False


def test_a_command_that_resumes_already_is_left_alone(attempt, tmp_path):
    attempt(2)
    asked = BaseSettings(run="mine", resume=True)
    assert settings_for_attempt(asked, frozenset({"run", "resume"}), tmp_path, attempt=3)[0] is asked


def test_the_note_is_no_run_in_the_list_and_goes_away_with_the_run(attempt, tmp_path):
    attempt(0)
    write_run(new_run_dir(tmp_path, "mine"), new_record("mine"))
    remember_run(tmp_path, "mine")
    assert [run.name for run in list_runs(tmp_path)] == ["mine"]
    assert (tmp_path / ".launch-abc").exists()
    forget_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_is_noted_where_no_attempt_can_follow(attempt, tmp_path, monkeypatch):
    attempt(0)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    remember_run(tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []
