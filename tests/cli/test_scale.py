"""`firstlight scale`: flags, refusals, the plan as JSON, and a page drawn again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstlight.cli import main

TINY = [
    "--vocab-size", "280", "--max-seq-len", "32", "--total-batch-size", "128", "--val", "last", "--val-documents", "10",
    "--device", "cpu", "--dtype", "fp32", "--threads", "1", "--compile", "off",
]  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    # Whole seconds of measuring are for plans that somebody waits for.
    monkeypatch.setattr("firstlight.recipes.scale.speeds.MEASURE_S", 0.02)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b"):
        lines = [
            json.dumps({"text": f"{name} {i}: " + "the cat saw a dog by the river. " * (1 + i % 5)}) for i in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_dry_run_prints_the_plan_and_trains_nothing(texts, tmp_path, capsys) -> None:
    command = [
        "scale",
        "--data",
        str(texts),
        "--depths",
        "1,2",
        "--flops",
        "1.1e10,2.2e10",
        "--name",
        "p",
        "--dry-run",
        *TINY,
    ]
    assert main.run([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # Within a budget the quickest comes first, by this machine's measured speeds.
    names = [cell["run"] for cell in plan["cells"]]
    assert (set(names[:2]), set(names[2:])) == ({"p-d1-c1", "p-d2-c1"}, {"p-d1-c2", "p-d2-c2"})
    assert plan["budgets"] == [1.1e10, 2.2e10]
    assert plan["expected_s"] == pytest.approx(plan["prepare_s"] + sum(cell["expected_s"] for cell in plan["cells"]))
    assert not (tmp_path / "runs").exists()
    assert main.run(command) == 0
    assert "tokens/N" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "neither --minutes nor --flops"),
        (["--depths", "2,x", "--minutes", "5"], "'x' is no number"),
        (["--depths", "1,2", "--flops", "1e10,1e9"], "must rise"),
        (["--depths", "1,2", "--flops", "1e6,1e7"], "a cell needs 30 steps"),
        (["--depths", "1,2,3", "--minutes", "0.2"], "too short"),
        (["--name", "nothing", "--resume"], "no scaling study 'nothing'"),
        (["--resume", "--minutes", "5", "--seeds", "2"], "--minutes, --seeds with --resume"),
    ],
)
def test_mistakes_are_told_with_exit_code_2(texts, capsys, flags, words) -> None:
    own = [] if "--resume" in flags else ["--data", str(texts), *TINY]
    assert main.run(["scale", *flags, *own]) == 2
    assert words in capsys.readouterr().err


def test_a_study_of_cells_that_are_done_is_drawn_again(texts, tmp_path, capsys, monkeypatch) -> None:
    from firstlight.recipes import record as records
    from firstlight.recipes.scale import study as studies

    main.run(["scale", "--data", str(texts), "--depths", "1,2,3", "--flops", "4e10", "--dry-run", "--json", *TINY])
    plan = json.loads(capsys.readouterr().out)
    del plan["expected_s"]
    runs = tmp_path / "runs"
    studies.write_json((runs / "scaling").mkdir(parents=True) or runs / "scaling" / "scale.json", plan)
    for cell in plan["cells"]:
        # A bowl over the depths; three points fix a parabola and no surface.
        bpb = 2.5 + 0.1 * abs(cell["depth"] - 2)
        final = {"val_bpb": bpb, "val_bpb_stderr": 0.01, "tokens": cell["batch_tokens"] * cell["num_steps"]}
        record = records.new_record(cell["run"], status="done", final=final, val_hash="v", tokenizer_hash="t")
        records.write_run(records.new_run_dir(runs, cell["run"]), record)
    assert main.run(["scale", "--page-only", "--json", "--seed-noise", "0.01"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "done"
    assert found["fit"]["seed_noise"] == 0.01
    assert len(found["fit"]["budgets"]) == 1
    assert (runs / "scaling" / "report.html").exists()
    assert main.run(["scale", "--page-only"]) == 0
    assert "compute-optimal tokens per parameter" in capsys.readouterr().out
    # A study that is elsewhere has its cells there.
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "others"))
    assert main.run(["scale", "--name", str(runs / "scaling"), "--resume"]) == 2
    assert "is not in the folder of the runs" in capsys.readouterr().err
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(runs))
    # The same name again is another study.
    assert main.run(["scale", "--data", str(texts), "--depths", "1,2", "--flops", "4e10,1.2e11", *TINY]) == 2
    assert "there is a study of that name" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_that_is_told_to_end_saves_its_cell_and_goes_on(texts, tmp_path, capsys) -> None:
    # A process of its own, for the signal; as in `texts`, it measures for a moment only.
    script = (
        "from firstlight.recipes.scale import speeds; speeds.MEASURE_S = 0.02; "
        "from firstlight.cli.main import main; main()"
    )
    begin = ["scale", "--name", "k", "--data", str(texts), "--depths", "1,2", "--flops", "4e10", *TINY]
    first = subprocess.Popen(
        [sys.executable, "-c", script, *begin], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    # Which of the two cells is the first depends on measured speeds.
    begun: list[Path] = []
    deadline = time.monotonic() + 240
    while not begun and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
        begun = [path for path in (tmp_path / "runs").glob("k-*/metrics.jsonl") if '"train"' in path.read_text()]
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=240)
    assert first.returncode == 130, said
    assert "0 of 2 cells are done" in said
    record = json.loads(begun[0].with_name("run.json").read_text())
    assert record["status"] == "stopped"
    assert main.run(["scale", "--name", "k", "--resume", "--json"]) == 0
    done = capsys.readouterr()
    found = json.loads(done.out)
    assert found["status"] == "done"
    assert "goes on (stopped before)" in done.err
    assert len(found["launches_s"]) == 2
