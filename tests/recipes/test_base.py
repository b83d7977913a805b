"""The base recipe end to end at tiny size: what it leaves on disk, and that a stop anywhere changes nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from firstlight.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingStopped
from firstlight.eval.document_scores import find_document_scores, read_document_scores
from firstlight.recipes import base, preflight, stage
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.metrics import read_metrics
from firstlight.runtime.native import library
from firstlight.runtime.native.library import Unavailable
from firstlight.train import trainer as trainer_module
from firstlight.train import writing
from firstlight.train.trainer import Trainer

TINY = BaseSettings(
    depth=1, vocab_size=320, max_seq_len=32, total_batch_size=128, num_iterations=12, dtype="fp32", device="cpu", compile="off",
    threads=1, workers=0, val="last", save_every=4, eval_every=0, sample_every=0,
)  # fmt: skip
GIVEN = frozenset({"run", "resume"})


@pytest.fixture
def tiny(tiny_corpus: Path) -> BaseSettings:
    return replace(TINY, data=str(tiny_corpus))


def tensors_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    names = ("model.safetensors", "optimizer-00000-of-00001.safetensors", "rng.safetensors")
    return {f"{name}:{key}": value for name in names for key, value in load_file(folder / name).items()}


def losses_of(run_dir: Path) -> list[tuple[int, float]]:
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == "train"]
    return [(row["step"], row["loss_nats"]) for row in rows]


def assert_same_run(one: Path, other: Path, *, step: int) -> None:
    left, right = tensors_of(one, step), tensors_of(other, step)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
    assert losses_of(one) == losses_of(other)
    assert [at for at, _ in losses_of(one)] == list(range(step))


def test_run_leaves_everything_that_the_design_names(tiny, own_folders):
    record = base.train_base(replace(tiny, run="all", eval_every=5, sample_every=6))
    run_dir = own_folders / "all"
    names = {path.name for path in run_dir.iterdir()}
    assert {"run.json", "metrics.jsonl", "samples.md", "report.html", "tokenizer.json", "checkpoints"} <= names
    on_disk = json.loads((run_dir / "run.json").read_text())
    assert on_disk["status"] == "done"
    for key in ("data_hash", "tokenizer_hash", "val_hash"):
        assert len(on_disk[key]) == 64, key
    assert on_disk["final"]["val_bpb"] == record.final["val_bpb"]
    assert on_disk["final"]["val_bpb_stderr"] > 0
    assert on_disk["final"]["num_documents"] == 120
    [path] = find_document_scores(run_dir)
    assert path.name == f"step_00000012-{on_disk['val_hash'][:12]}.jsonl"
    scores = read_document_scores(path)
    assert scores.is_whole
    assert scores.nats.sum() / math.log(2) / scores.num_bytes.sum() == pytest.approx(record.final["val_bpb"], rel=1e-9)
    rows = read_metrics(run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [0, 5, 10, 12]
    assert [row["step"] for row in rows if row["kind"] == "sample"] == [6, 12]
    losses = [loss for _, loss in losses_of(run_dir)]
    # ln(320) = 5.77 at the start, and a model that learns is below it after a dozen steps.
    assert losses[0] == pytest.approx(5.768, rel=0.01)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("stopped_at", "rows"), [(1, None), (4, None), (7, 1), (11, 1)])
def test_run_stopped_anywhere_and_resumed_is_bit_equal(tiny, own_folders, monkeypatch, stopped_at, rows):
    # One row a pass makes four micro-batches of each step.
    tiny = replace(tiny, device_batch_size=rows)
    base.train_base(replace(tiny, run="straight"))
    real = Trainer.advance

    def advance(self, state):
        if state.step == stopped_at:
            raise RuntimeError("pulled the plug")
        return real(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(RuntimeError, match="plug"):
            base.train_base(replace(tiny, run="stopped"))
    base.train_base(BaseSettings(run="stopped", resume=True), given=GIVEN)
    assert_same_run(own_folders / "straight", own_folders / "stopped", step=12)


def test_resume_is_exact_across_an_epoch_end(tiny, own_folders, monkeypatch):
    # The stop, at step 25, is while rows are still cut into halves.
    long = replace(tiny, total_batch_size=2048, num_iterations=30, save_every=7, short_rows_frac=0.9)
    base.train_base(replace(long, run="straight"))
    epochs = [
        row["epoch"] for row in read_metrics(own_folders / "straight" / "metrics.jsonl") if row["kind"] == "train"
    ]
    assert epochs[-1] >= 2, "the corpus must be passed more than twice for this test to mean something"
    real = Trainer.advance

    def advance(self, state):
        if state.step == 25:
            raise RuntimeError("pulled the plug")
        return real(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(RuntimeError):
            base.train_base(replace(long, run="stopped"))
    base.train_base(BaseSettings(run="stopped", resume=True), given=GIVEN)
    assert_same_run(own_folders / "straight", own_folders / "stopped", step=30)


def test_a_run_that_goes_on_without_its_native_code_says_so(tiny, own_folders, monkeypatch, capsys):
    record = base.train_base(replace(tiny, run="once"))
    if not record.config["native"]:
        pytest.skip("no native code on this machine")
    go_on = BaseSettings(run="once", resume=True, num_iterations=15)
    monkeypatch.setattr(library, "load_library", lambda source: Unavailable("g++ has gone"))
    record = base.train_base(go_on, given=GIVEN | {"num_iterations"})
    assert "by native code when the run began and are now by torch's operations" in capsys.readouterr().err
    assert record.config["native"], "the record says how the run began"


def test_probes_change_nothing_that_is_trained(tiny, own_folders):
    base.train_base(replace(tiny, run="without"))
    base.train_base(replace(tiny, run="with", eval_every=1, sample_every=1))
    assert_same_run(own_folders / "without", own_folders / "with", step=12)


@pytest.mark.parametrize("what", ["over their budget", "out of memory"])
def test_probes_in_trouble_change_nothing_that_is_trained(tiny, own_folders, monkeypatch, what):
    base.train_base(replace(tiny, run="without"))
    if what == "over their budget":
        base.train_base(
            replace(tiny, run="with", eval_every=1, sample_every=1, eval_budget_s=1e-9, sample_budget_s=1e-9)
        )
    else:

        def fail(*arguments, **options):
            raise torch.OutOfMemoryError("CUDA out of memory")

        real = stage.Validation.score
        monkeypatch.setattr(stage.Validation, "score", lambda *a, **o: (fail if "is_over" in o else real)(*a, **o))
        monkeypatch.setattr("firstlight.recipes.probes.sample_prompts", fail)
        base.train_base(replace(tiny, run="with", eval_every=1, sample_every=1))
    assert_same_run(own_folders / "without", own_folders / "with", step=12)
    rows = read_metrics(own_folders / "with" / "metrics.jsonl")
    events = [row["what"] for row in rows if row["kind"] == "event"]
    *cut, final = [row for row in rows if row["kind"] == "eval"]
    assert final["num_documents"] == 120
    if what == "out of memory":
        assert cut == []
        assert sum("OutOfMemoryError" in text for text in events) == 6
        assert sum("switched off" in text for text in events) == 2
    else:
        assert len(cut) + sum("ended by force" in text for text in events if "probe eval" in text) >= 3
        assert not any("val_bpb" in row for row in cut)


def test_checkpoint_is_on_disk_before_the_last_score_and_a_failing_score_loses_nothing(tiny, own_folders, monkeypatch):
    def fail(self, model, **limits):
        assert (own_folders / "lost" / "checkpoints" / "step_00000012").is_dir()
        raise MemoryError("evaluation needs more than there is")

    with monkeypatch.context() as patch:
        patch.setattr(stage.Validation, "score", fail)
        with pytest.raises(MemoryError):
            base.train_base(replace(tiny, run="lost"))
    # And --resume needs no training to give the score.
    record = base.train_base(BaseSettings(run="lost", resume=True), given=GIVEN)
    assert record.status == "done"
    assert record.final["val_bpb"] > 0
    assert len(losses_of(own_folders / "lost")) == 12


def test_nan_stops_the_run_after_the_limit_and_names_the_documents(tiny, own_folders, monkeypatch):
    real = trainer_module.train_step

    def poisoned(model, optimizer, batches, runtime, hyper, **options):
        hidden = options.pop("hidden")
        return real(model, optimizer, batches, runtime, hyper, hidden=lambda ids: hidden(ids) * float("nan"), **options)

    monkeypatch.setattr(trainer_module, "train_step", poisoned)
    with pytest.raises(TrainingStopped) as caught:
        base.train_base(replace(tiny, run="nan", nonfinite_limit=3))
    assert caught.value.exit_code == 5
    rows = read_metrics(own_folders / "nan" / "metrics.jsonl")
    events = [row for row in rows if row["kind"] == "event"]
    assert len(events) == 3
    assert all(name.startswith("part_0.jsonl:") for name in events[0]["documents"])
    assert json.loads((own_folders / "nan" / "run.json").read_text())["status"] == "stopped"


def test_signal_saves_at_the_step_and_resumes_exactly(tiny, own_folders, monkeypatch):
    import signal

    base.train_base(replace(tiny, run="straight"))
    real = Trainer.advance

    def advance(self, state):
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(Interrupted) as caught:
            base.train_base(replace(tiny, run="term", save_every=0))
    assert caught.value.exit_code == 130
    assert (own_folders / "term" / "checkpoints" / "step_00000007").is_dir()
    base.train_base(BaseSettings(run="term", resume=True), given=GIVEN)
    assert_same_run(own_folders / "straight", own_folders / "term", step=12)


def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tiny, own_folders, capsys):
    base.train_base(replace(tiny, run="straight"))
    base.train_base(replace(tiny, run="bad"))
    weights = own_folders / "bad" / "checkpoints" / "step_00000012" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    base.train_base(BaseSettings(run="bad", resume=True), given=GIVEN)
    assert "step_00000012" in capsys.readouterr().err
    assert_same_run(own_folders / "straight", own_folders / "bad", step=12)


def test_resume_refuses_changed_data_by_content(tiny, own_folders, tiny_corpus):
    base.train_base(replace(tiny, run="once"))
    shard = tiny_corpus / "part_0.jsonl"
    shard.write_text(shard.read_text().replace("cat", "cow", 1))
    with pytest.raises(DataError, match=r"the data .* has changed"):
        base.train_base(BaseSettings(run="once", resume=True, num_iterations=20), given=GIVEN | {"num_iterations"})


def test_resume_refuses_another_tokenizer_by_content(tiny, own_folders, tiny_corpus):
    base.train_base(replace(tiny, run="once"))
    other = base.train_base(replace(tiny, run="other", vocab_size=300))
    assert other.status == "done"
    (own_folders / "once" / "tokenizer.json").write_bytes((own_folders / "other" / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match="tokenizer"):
        base.train_base(BaseSettings(run="once", resume=True), given=GIVEN)


def test_resume_with_a_longer_horizon_trains_on(tiny, own_folders):
    base.train_base(replace(tiny, run="longer"))
    record = base.train_base(
        BaseSettings(run="longer", resume=True, num_iterations=15), given=GIVEN | {"num_iterations"}
    )
    assert record.final["steps"] == 15
    assert any("--num-iterations 15" in note for note in record.notes)


def test_checkpoint_of_another_architecture_is_refused(tiny, own_folders):
    base.train_base(replace(tiny, run="small"))
    base.train_base(replace(tiny, run="wide", depth=2))
    import shutil

    shutil.rmtree(own_folders / "small" / "checkpoints")
    shutil.copytree(own_folders / "wide" / "checkpoints", own_folders / "small" / "checkpoints")
    with pytest.raises(CheckpointError, match="another architecture"):
        base.train_base(BaseSettings(run="small", resume=True), given=GIVEN)


def test_same_global_batch_in_one_pass_or_four_gives_the_same_losses(tiny, own_folders):
    base.train_base(replace(tiny, run="one"))
    base.train_base(replace(tiny, run="four", device_batch_size=1))
    one, four = losses_of(own_folders / "one"), losses_of(own_folders / "four")
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in four], abs=1e-4)
    rates = [
        row["num_targets"] for row in read_metrics(own_folders / "four" / "metrics.jsonl") if row["kind"] == "train"
    ]
    assert max(rates) == 128
    rows = [row for row in read_metrics(own_folders / "four" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["tokens_seen"] for row in rows] == [128 * (step + 1) for step in range(12)]
    assert all(row["tokens_per_s"] * row["step_time_s"] == pytest.approx(128) for row in rows)


def test_text_without_a_validation_document_is_refused_before_step_0(tiny, own_folders, tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_text("the cat sat on the mat. " * 200)
    monkeypatch.setattr(Trainer, "fit", lambda self, state: pytest.fail("training began"))
    with pytest.raises(DataError, match="no validation document"):
        base.train_base(replace(tiny, data=str(tmp_path / "one.txt"), val=None, vocab_size=270, run="x"))
    assert not (own_folders / "x").exists()


def test_text_shorter_than_a_row_is_refused_naming_both_sizes(tiny, own_folders, tmp_path):
    folder = tmp_path / "short"
    folder.mkdir()
    (folder / "a.txt").write_text("the cat sat on the mat and the cat sat on the hat")
    (folder / "b.txt").write_text("the dog sat on the log and the dog sat on the fog")
    with pytest.raises(DataError, match=r"less than one row of 512(.|\n)*--max-seq-len"):
        base.train_base(replace(tiny, data=str(folder), vocab_size=267, max_seq_len=512, total_batch_size=512, run="x"))
    assert not (own_folders / "x").exists()


def test_full_disk_at_the_record_is_one_clear_message(tiny, own_folders, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("run.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"run.json could not be written: No space left"):
        base.train_base(replace(tiny, run="x"))


def test_minutes_that_leave_no_time_to_train_are_refused_before_step_0(tiny):
    with pytest.raises(ConfigError, match="no time is left to train"):
        base.train_base(replace(tiny, run="short", num_iterations=None, minutes=0.02))


def test_vocabulary_that_the_text_cannot_give_is_refused_and_leaves_no_run(tiny, own_folders):
    with pytest.raises(DataError, match="5000"):
        base.train_base(replace(tiny, run="big", vocab_size=5000))
    assert not (own_folders / "big").exists()


def test_run_name_that_exists_is_refused(tiny, own_folders):
    base.train_base(replace(tiny, run="once", num_iterations=2))
    with pytest.raises(ConfigError, match="--run once"):
        base.train_base(replace(tiny, run="once"))


def test_folder_without_write_permission_is_refused_before_step_0(tiny, own_folders, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "a_file" / "runs"))
    with pytest.raises(ConfigError, match=r"cannot be made|not a folder"):
        base.train_base(replace(tiny, run="x"))


def test_full_disk_during_a_save_keeps_the_run_and_the_last_good_checkpoint(tiny, own_folders, monkeypatch, capsys):
    real = writing.save_file

    def full(tensors, path):
        if "step_00000008" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(writing, "save_file", full)
    record = base.train_base(replace(tiny, run="full"))
    assert record.status == "done"
    assert "No space left" in capsys.readouterr().err


def test_disk_too_small_for_the_checkpoints_is_refused_before_step_0(tiny, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(ConfigError, match="checkpoints need"):
        base.train_base(replace(tiny, run="x"))


def test_a_copied_run_goes_on_in_the_copy_and_leaves_the_first_alone(tiny, own_folders):
    base.train_base(replace(tiny, run="first", num_iterations=8))
    shutil.copytree(own_folders / "first", own_folders / "copy")
    before = {path: path.read_bytes() for path in (own_folders / "first").rglob("*") if path.is_file()}
    given = frozenset({"run", "resume", "num_iterations"})
    record = base.train_base(replace(tiny, run="copy", resume=True, num_iterations=12), given=given)
    assert record.name == "copy"
    assert record.final["steps"] == 12
    assert (own_folders / "copy" / "checkpoints" / "step_00000012").is_dir()
    assert {path: path.read_bytes() for path in (own_folders / "first").rglob("*") if path.is_file()} == before
