"""A cell's command line, and a process that is started, watched and told to stop."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from firstlight.recipes.scale.cell import Common, StopSignals, command_of, run_in_process, settings_of


def test_command_line_means_the_settings(make_study) -> None:
    from firstlight.cli.main import app

    study = make_study()
    cell = study.cells[0]
    settings = settings_of(cell, study.rules, Common(data="my texts", val="last", final_documents=50, threads=2))
    _, bound, _ = app.parse_args(command_of(settings, resume=True), print_error=False, exit_on_error=False)
    parsed = asdict(bound.arguments["settings"])
    for name, value in settings.items():
        assert parsed[name] == value, name
    assert parsed["resume"] is True
    assert (parsed["num_iterations"], parsed["depth"], parsed["final_documents"]) == (cell.num_steps, cell.depth, 50)
    assert parsed["eval_every"] == parsed["sample_every"] == 0


def test_a_process_runs_says_its_words_into_the_log_and_returns_its_code(tmp_path: Path) -> None:
    log, ticks = tmp_path / "logs" / "x.log", []
    stop = StopSignals()
    assert run_in_process(["--version"], log=log, stop=stop, tick=ticks.append) == 0
    assert run_in_process(["runs", "show", "nothing-here"], log=log, stop=stop, tick=ticks.append) == 2
    from firstlight import __version__

    said = log.read_text()
    assert __version__ in said
    assert "no run 'nothing-here'" in said


def test_a_signal_is_remembered_and_a_second_ctrl_c_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    before = signal.getsignal(signal.SIGINT)
    stop = StopSignals()
    with stop.watching():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
