"""What makes a folder a checkpoint; and those of the first schema, which one process wrote, are still read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torn import save, share_of

from firstlight.errors import CheckpointError
from firstlight.train.checkpoint import load_checkpoint
from firstlight.train.manifest import (
    find_latest_good,
    json_bytes,
    manifest_bytes,
    num_processes,
    read_manifest,
    step_of,
    tensor_files,
    verify,
    verify_sizes,
)


def old_checkpoint(directory, step):
    """As firstlight 0.1 wrote it: schema 1, no shapes."""
    path = directory / f"step_{step:08d}"
    path.mkdir(parents=True)
    save_file({"w": torch.full((2, 3), float(step))}, path / "model.safetensors")
    save_file({"w/momentum": torch.arange(6.0).view(2, 3)}, path / "optimizer-00000-of-00001.safetensors")
    (path / "state.json").write_text(json.dumps({"step": step}))
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in path.iterdir()
    }
    content = {"schema": 1, "step": step, "files": files, "versions": {"firstlight": "0.1.0"}}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return path


def test_a_checkpoint_of_the_first_schema_is_found_and_read(tmp_path):
    path = old_checkpoint(tmp_path, 12)
    said = []
    assert find_latest_good(tmp_path, said.append) == path
    assert said == []
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.num_processes, loaded.state) == (12, 1, {"step": 12})
    assert torch.equal(loaded.model["w"], torch.full((2, 3), 12.0))
    assert loaded.optimizer.piece("w/momentum", 2, 5).tolist() == [2, 3, 4]


def test_the_files_of_a_checkpoint_say_how_many_processes_wrote_it():
    files = ["rng.safetensors", "state.json", "optimizer-00001-of-00002.safetensors", "model.safetensors"]
    files += ["optimizer-00000-of-00002.safetensors", "model-00001-of-00002.safetensors", "optimizer.safetensors.bak"]
    named = dict.fromkeys(files)
    assert num_processes(named) == 2
    assert num_processes({"model.safetensors": None}) == 1
    assert tensor_files(named, "optimizer") == [f"optimizer-0000{rank}-of-00002.safetensors" for rank in (0, 1)]
    assert tensor_files(named, "model") == ["model-00001-of-00002.safetensors", "model.safetensors"]


def test_a_step_is_read_from_a_name_of_any_length(tmp_path):
    assert step_of(tmp_path / "step_00000007") == 7
    assert step_of(tmp_path / "step_123456789") == 123_456_789
    assert step_of(tmp_path / ".replaced-step_00000007") == 7
    assert [step_of(tmp_path / name) for name in ("step_7_old", ".tmp-step_00000007", "runs")] == [None] * 3


@pytest.mark.parametrize(
    "gone", ["state.json", "model.safetensors", "optimizer-00000-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"]
)  # fmt: skip
def test_a_manifest_that_does_not_list_a_needed_file_is_refused(tmp_path, gone):
    path = tmp_path / "step_00000003"
    path.mkdir()
    entries = {}
    tensors = {"model.safetensors": share_of(0, 2, 1.0)["model"]}
    tensors |= {f"optimizer-0000{rank}-of-00002.safetensors": share_of(rank, 2, 1.0)["optimizer"] for rank in (0, 1)}
    for name, values in tensors.items():
        save_file(values, path / name)
    (path / "state.json").write_bytes(json_bytes({}))
    for file in path.iterdir():
        if file.name != gone:
            entries[file.name] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (path / "manifest.json").write_bytes(manifest_bytes(3, entries, {"w/momentum": (7, 5)}))
    with pytest.raises(CheckpointError, match=f"does not list {gone}"):
        read_manifest(path)


def test_sizes_alone_find_a_cut_file_and_not_a_changed_byte(tmp_path):
    path = save(tmp_path, 1)
    file = path / "model.safetensors"
    assert verify_sizes(path) == []
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert verify_sizes(path) == []
    assert str(file) in verify(path)[0]
    os.truncate(file, 5)
    assert "has 5 bytes" in verify_sizes(path)[0]
    shutil.rmtree(path)
    assert "manifest.json is missing" in verify_sizes(path)[0]
