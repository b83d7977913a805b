"""Claims of recipes/loading.py: a run is found, checked and loaded, and every way it can be wrong has its message."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from firstlight.errors import CheckpointError, ConfigError, DataError
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.recipes.loading import choose_checkpoint, load_for_inference, slow_writing
from firstlight.recipes.record import new_record, read_run, write_run
from firstlight.runtime.context import Runtime
from firstlight.runtime.native import library
from firstlight.runtime.native.library import Unavailable
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.checkpoint import save_checkpoint

CPU = Runtime(device=torch.device("cpu"))
TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
CONFIG = GPTConfig(TOKENIZER.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, max_seq_len=32)


class NoOptimizer:
    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {}


def model_of(step: int, config: GPTConfig = CONFIG) -> GPT:
    return build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=step)


def save(run_dir: Path, step: int, config: GPTConfig = CONFIG) -> Path:
    return save_checkpoint(
        run_dir / "checkpoints",
        step=step,
        model=model_of(step, config),
        optimizer=NoOptimizer(),
        state={"step": step},
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run named ``mine`` with checkpoints of steps 5 and 10; step 5 has the lower val_bpb, step 7 is no longer kept."""
    path = tmp_path / "mine"
    path.mkdir()
    TOKENIZER.save(path / "tokenizer.json")
    write_run(path, new_record("mine", config={"model": asdict(CONFIG)}, tokenizer_hash=TOKENIZER.content_hash))
    for step in (5, 10):
        save(path, step)
    rows = [
        {"kind": "train", "step": 5, "loss_nats": 0.1},
        {"kind": "eval", "step": 5, "val_bpb": 2.0},
        {"kind": "eval", "step": 7, "val_bpb": 1.0},
        {"kind": "eval", "step": 10, "val_bpb": 2.5},
        {"kind": "eval", "step": 10, "val_bpb": None},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(run_dir: Path, checkpoint: str = "latest", name: str = "mine"):
    return load_for_inference(name, CPU, checkpoint=checkpoint, runs_dir=run_dir.parent)


@pytest.mark.parametrize(("checkpoint", "step"), [("latest", 10), ("best", 5), ("5", 5), ("10", 10), ("0005", 5)])
def test_the_checkpoint_asked_for_is_loaded_bit_equal(run_dir: Path, checkpoint: str, step: int) -> None:
    loaded = load(run_dir, checkpoint)
    assert loaded.step == step
    expected = model_of(step)
    assert loaded.model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in loaded.model.state_dict().items())
    ids_BT = torch.arange(32)[None]
    assert torch.equal(loaded.model(ids_BT), expected(ids_BT))  # the rotary tables too
    assert loaded.path == run_dir
    assert loaded.tokenizer.content_hash == TOKENIZER.content_hash


def test_a_loaded_model_is_for_use_not_for_training(run_dir: Path) -> None:
    model = load(run_dir).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_slow_writing_is_told_with_its_reason_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load_library", lambda source: Unavailable("no C++ compiler was found (install g++)"))
    assert slow_writing(CPU) == [
        "text is written by torch's operations, several times slower: no C++ compiler was found (install g++)"
    ]
    assert slow_writing(Runtime(device=torch.device("cuda"), compute_dtype=torch.bfloat16)) == []
    monkeypatch.setattr(library, "load_library", lambda source: object())
    assert slow_writing(CPU) == []


def test_the_compute_dtype_is_the_runtimes(run_dir: Path) -> None:
    runtime = Runtime(device=torch.device("cpu"), compute_dtype=torch.bfloat16)
    model = load_for_inference("mine", runtime, runs_dir=run_dir.parent).model
    assert model.compute_dtype is torch.bfloat16
    assert model.lm_head.weight.dtype is torch.float32


def test_a_path_works_as_well_as_a_name(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = run_dir.parent / "no_runs_here"
    assert load_for_inference(str(run_dir), CPU, runs_dir=elsewhere).step == 10
    assert load_for_inference(run_dir, CPU, runs_dir=elsewhere).step == 10
    monkeypatch.chdir(run_dir.parent)
    assert load_for_inference("mine/", CPU, runs_dir=elsewhere).step == 10


def test_an_unknown_run_is_refused_with_the_nearest_name(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no run 'mien'.*did you mean mine"):
        load(run_dir, name="mien")


def test_no_checkpoint_at_all_is_said(run_dir: Path) -> None:
    for folder in (run_dir / "checkpoints").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        load(run_dir)
    (run_dir / "checkpoints").rmdir()
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        load(run_dir)
    with pytest.raises(CheckpointError, match="the run has no checkpoint"):
        load(run_dir, "5")


def test_a_damaged_newest_checkpoint_is_passed_over_and_reported(run_dir: Path) -> None:
    newest = choose_checkpoint(run_dir, "10")
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    said: list[str] = []
    loaded = load_for_inference("mine", CPU, runs_dir=run_dir.parent, report=said.append)
    assert loaded.step == 5
    assert any(newest.name in line for line in said)
    with pytest.raises(CheckpointError, match="damaged"):
        load(run_dir, "10")
    (choose_checkpoint(run_dir, "5") / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no good checkpoint: all 2 are damaged"):
        load(run_dir)


def test_a_checkpoint_that_is_not_kept_lists_the_kept_ones(run_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint of step 7.*kept are steps 5, 10"):
        load(run_dir, "7")


def test_a_misspelt_checkpoint_is_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--checkpoint lastest.*did you mean 'latest'"):
        load(run_dir, "lastest")
    with pytest.raises(ConfigError, match="a step's number"):
        load(run_dir, "-1")


def test_best_without_scores_is_refused(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="none is the best"):
        load(run_dir, "best")


def test_folders_that_are_no_checkpoints_are_ignored(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step_00000200_backup").mkdir()
    (run_dir / "checkpoints" / "notes.txt").write_text("x")
    assert load(run_dir).step == 10
    with pytest.raises(CheckpointError, match="kept are steps 5, 10"):
        load(run_dir, "200")


def test_a_checkpoint_of_another_depth_names_the_first_extra_tensors(run_dir: Path) -> None:
    save(run_dir, 20, replace(CONFIG, n_layer=3))
    with pytest.raises(CheckpointError, match=r"transformer\.h\.2\.\S+ is not part of the model; .* and 3 more"):
        load(run_dir)


def test_a_checkpoint_of_a_shallower_model_names_what_is_missing(run_dir: Path) -> None:
    save(run_dir, 20, replace(CONFIG, n_layer=1))
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.\S+ is missing; .* and 3 more"):
        load(run_dir)


def test_a_checkpoint_of_another_width_names_both_shapes(run_dir: Path) -> None:
    save(run_dir, 20, replace(CONFIG, n_embd=32))
    with pytest.raises(CheckpointError, match=r"wte\.weight .*\b265, 32\b.* instead of .*\b265, 16\b"):
        load(run_dir)


def test_another_tokenizer_is_refused(run_dir: Path) -> None:
    other = Tokenizer([bytes([b]) for b in reversed(range(256))])
    other.save(run_dir / "tokenizer.json")
    with pytest.raises(CheckpointError, match=other.content_hash[:16]):
        load(run_dir)


def test_a_missing_tokenizer_is_named(run_dir: Path) -> None:
    (run_dir / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load(run_dir)


def test_a_tokenizer_larger_than_the_model_is_refused(run_dir: Path) -> None:
    record = read_run(run_dir)
    config = asdict(replace(CONFIG, vocab_size=100))
    write_run(run_dir, replace(record, config={"model": config}))
    with pytest.raises(CheckpointError, match="265 ids and its model 100"):
        load(run_dir)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.model is missing"),
        ({"model": {"n_layer": 1}}, "'vocab_size' is missing"),
        ({"model": asdict(CONFIG) | {"blur": True}}, "unknown key 'blur'"),
        ({"model": asdict(CONFIG) | {"n_head": 3}}, "n_head 3"),
    ],
)
def test_a_record_that_describes_no_model_is_refused(run_dir: Path, config: dict, message: str) -> None:
    write_run(run_dir, replace(read_run(run_dir), config=config))
    with pytest.raises(CheckpointError, match=message):
        load(run_dir)


def test_a_damaged_record_is_refused(run_dir: Path) -> None:
    (run_dir / "run.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load(run_dir)


def test_a_run_is_used_in_the_dtype_of_its_training_unless_another_is_asked_for(run_dir):
    from firstlight.recipes.loading import dtype_for

    write_run(run_dir, replace(read_run(run_dir), dtype="bf16"))
    assert dtype_for(str(run_dir), "run") == "bf16"
    assert dtype_for(str(run_dir), "fp32") == "fp32"
    write_run(run_dir, replace(read_run(run_dir), dtype="fp16"))
    assert dtype_for(str(run_dir), "run", device="cpu") == "auto"
    assert dtype_for(str(run_dir), "run", device="cuda") == "fp16"
