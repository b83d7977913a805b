"""A study from its plan to its page at tiny size: run, stopped, failed, resumed."""

from __future__ import annotations

import json
import sys
import time

import pytest

from firstlight.errors import ConfigError, FirstlightError, Interrupted
from firstlight.recipes import record as records
from firstlight.recipes.scale import grid, planning, running, speeds, study
from firstlight.recipes.scale.planning import Request
from firstlight.runtime.console import Console
from firstlight.runtime.metrics import read_metrics
from firstlight.train.trainer import Trainer


@pytest.fixture
def tiny(tiny_corpus, own_folders, monkeypatch):
    """A plan of two sizes and two budgets, of 6 to 72 steps. Cells run in this process: it has torch already."""
    monkeypatch.setattr(grid, "FEWEST_STEPS", 5)
    monkeypatch.setattr(speeds, "MEASURE_S", 0.02)
    request = Request(
        name="s", data=str(tiny_corpus), val="last", depths=(1, 2), flops=(2e9, 4e9), vocab_size=300,
        max_seq_len=32, total_batch_size=128, val_documents=30, threads=1, device="cpu", dtype="fp32", compile="off",
    )  # fmt: skip
    planned = planning.plan_study(request, console=Console(), started_s=time.monotonic())
    study.begin(own_folders, planned)
    return planned


def in_this_process(monkeypatch, *, after=lambda command, stop: None):
    """A stand-in for a cell's process. after: called with the command and the signals when a cell has ended."""
    from firstlight.cli import main

    ran = []

    def run_cell(command, *, log, stop, tick):
        ran.append(command)
        monkeypatch.setattr(sys, "argv", ["firstlight", *command])
        try:
            return main.run(command)
        except RuntimeError:
            return 1
        finally:
            after(command, stop)

    return run_cell, ran


def go(planned, own_folders, run_cell):
    return running.run_study(
        planned, runs_dir=own_folders, console=Console(), started_s=time.monotonic(), run_cell=run_cell
    )


def test_a_study_is_stopped_goes_on_is_listed_and_runs_nothing_twice(tiny, own_folders, monkeypatch) -> None:
    def stop_after_second(command, stop):
        if tiny.cells[1].run in command:
            stop.requested = "SIGTERM"

    run_cell, ran = in_this_process(monkeypatch, after=stop_after_second)
    with pytest.raises(Interrupted, match="2 of 4 cells are done") as caught:
        go(tiny, own_folders, run_cell)
    assert "firstlight scale --name s --resume" in caught.value.hint
    assert len(ran) == 2
    run_cell, ran = in_this_process(monkeypatch)
    results = go(study.read_study(own_folders / "s"), own_folders, run_cell)
    assert len(ran) == 2
    assert results.is_complete
    assert {run.name for run in records.list_runs(own_folders)} == {cell.run for cell in tiny.cells}
    written = json.loads((own_folders / "s" / "results.json").read_text())
    assert written["status"] == "done"
    for row, outcome in zip(written["cells"], results.outcomes, strict=True):
        record = records.read_run(own_folders / row["run"])
        assert row["val_bpb"] == record.final["val_bpb"] == outcome.bpb
        assert record.final["tokens"] == row["num_tokens"]
        assert record.final["num_documents"] == 30, "the first documents of the validation shard"
        rows = read_metrics(own_folders / row["run"] / "metrics.jsonl")
        assert [r["kind"] for r in rows].count("eval") == 1, "scored at the end only"
    assert (own_folders / "s" / "report.html").exists()
    assert written["fit"]["surface"] is None, "four points fix no surface"
    assert go(study.read_study(own_folders / "s"), own_folders, run_cell).is_complete
    assert len(ran) == 2
    assert len(study.read_study(own_folders / "s").launches_s) == 3


def test_a_cell_that_fails_is_named_and_the_study_goes_on_and_a_resume_mends_it(tiny, own_folders, monkeypatch) -> None:
    run_cell, ran = in_this_process(monkeypatch)
    real = Trainer.advance
    victim = tiny.cells[1]

    def advance(self, state):
        if state.step == 5 and sys.argv[sys.argv.index("--run") + 1] == victim.run:
            raise RuntimeError("pulled the plug")
        return real(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(FirstlightError, match=rf"1 of 4 cells failed.*{victim.run}") as caught:
            go(tiny, own_folders, run_cell)
    assert "--resume" in caught.value.hint
    assert len(ran) == 4
    written = json.loads((own_folders / "s" / "results.json").read_text())
    assert [cell["status"] for cell in written["cells"]].count("done") == 3
    results = go(tiny, own_folders, run_cell)
    assert len(ran) == 5
    assert ran[-1][-1] == "--resume"
    assert results.is_complete


def test_a_mistake_that_all_cells_share_ends_the_study_at_once(tiny, own_folders) -> None:
    ran = []

    def refuse(command, *, log, stop, tick):
        ran.append(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("words\nerror: --data gone: no such folder\n")
        return 2

    with pytest.raises(FirstlightError, match=r"would fail alike.*--data gone"):
        go(tiny, own_folders, refuse)
    assert len(ran) == 1


def test_a_cell_that_another_process_trains_is_left_alone(tiny, own_folders) -> None:
    cell = tiny.cells[0]
    # This process lives, so its record counts as running.
    records.write_run(records.new_run_dir(own_folders, cell.run), records.new_record(cell.run))
    with pytest.raises(ConfigError, match="trained by another process"):
        go(tiny, own_folders, lambda *a, **k: pytest.fail("nothing may start"))
