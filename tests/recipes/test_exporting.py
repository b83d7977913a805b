"""Claims of recipes/exporting.py: a run goes out and comes back as a run that works, or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from interop.exported import OPTIONS, model, tokenizer

from firstlight.cli.main import run
from firstlight.errors import CheckpointError, ConfigError
from firstlight.recipes.exporting import CPU, export_hf, import_hf
from firstlight.recipes.loading import load_for_inference
from firstlight.recipes.record import new_record, read_run, write_run
from firstlight.train.checkpoint import save_checkpoint


class NoOptimizer:
    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    tokenizer().save(path / "tokenizer.json")
    ours = model(OPTIONS["modern"])
    record = new_record(
        "mine",
        status="done",
        config={"model": asdict(ours.config), "settings": {"data": "builtin"}, "val": "hash:0.01"},
        tokenizer_hash=tokenizer().content_hash,
        val_hash="v" * 8,
        final={"steps": 12, "val_bpb": 1.5, "val_bpb_stderr": 0.1, "tokens": 99},
    )
    write_run(path, record)
    save_checkpoint(path / "checkpoints", step=12, model=ours, optimizer=NoOptimizer(), state={})
    return path.parent


def test_a_run_comes_back_as_a_run(runs: Path, tmp_path: Path) -> None:
    export_hf("mine", tmp_path / "out", kind="auto", dtype="fp32", checkpoint="latest", overwrite=False, runs_dir=runs)
    assert "1.5000 ± 0.1000" in (tmp_path / "out" / "README.md").read_text()
    path, step, _ = import_hf(tmp_path / "out", "again", runs_dir=runs)
    assert step == 12
    record = read_run(path)
    assert (record.recipe, record.status, record.parents) == ("import", "done", ("mine",))
    assert record.final["val_bpb"] == 1.5
    back = load_for_inference("again", CPU, runs_dir=runs)
    ours = load_for_inference("mine", CPU, runs_dir=runs)
    assert all(torch.equal(w, back.model.state_dict()[n]) for n, w in ours.model.state_dict().items())
    assert (path / "tokenizer.json").read_bytes() == (runs / "mine" / "tokenizer.json").read_bytes()


def test_an_import_that_fails_leaves_no_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_hf("mine", tmp_path / "out", kind="auto", dtype="fp32", checkpoint="12", overwrite=False, runs_dir=runs)
    with pytest.raises(ConfigError, match="there is a run of that name"):
        import_hf(tmp_path / "out", "mine", runs_dir=runs)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("firstlight.recipes.exporting.save_checkpoint", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        import_hf(tmp_path / "out", "new", runs_dir=runs)
    assert [path.name for path in runs.iterdir()] == ["mine"]


def test_an_import_says_what_it_cannot(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_hf("mine", tmp_path / "out", kind="auto", dtype="fp32", checkpoint="latest", overwrite=False, runs_dir=runs)
    import_hf(tmp_path / "out", "again", runs_dir=runs)
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(runs))
    assert run(["eval", "bpb", "again", "--device", "cpu"]) == 2
    # Scoring all of a text, of which most was trained on, would be no test.
    assert "mine, which it was exported from, had --data builtin --val hash:0.01" in capsys.readouterr().err.replace(
        "\n  ", " "
    )
    (tmp_path / "out" / "firstlight.json").unlink()
    import_hf(tmp_path / "out", "foreign", runs_dir=runs)
    assert run(["eval", "bpb", "foreign", "--device", "cpu"]) == 2
    assert "give --data and --val\n" in capsys.readouterr().err
    assert run(["explain", "again", "--device", "cpu"]) != 0
    assert "is an imported model" in capsys.readouterr().err


def test_weights_of_other_shapes_are_told_before_memory_is_taken(runs: Path, tmp_path: Path) -> None:
    export_hf("mine", tmp_path / "out", kind="auto", dtype="fp32", checkpoint="latest", overwrite=False, runs_dir=runs)
    config = tmp_path / "out" / "config.json"
    # 2**20 ids and as many numbers each: 4 TB.
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 2**20, "n_embd": 2**20}))
    with pytest.raises(CheckpointError, match=r"instead of float32 \[1048576, 1048576\]"):
        import_hf(tmp_path / "out", "huge", runs_dir=runs)
    assert not (runs / "huge").exists()
