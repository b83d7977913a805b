"""A checkpoint is whole and verified, or it is not there: torn saves, flipped bits, full disks, kills."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torn import Cut, Operations, Tensors, names, number_of_operations, save, value_in

from firstlight.errors import CheckpointError
from firstlight.train import manifest as manifests
from firstlight.train import writing
from firstlight.train.checkpoint import (
    find_latest_good,
    list_steps,
    load_checkpoint,
    load_into,
    retain,
    save_checkpoint,
    tensor_name,
    verify,
)

FILES = ["model.safetensors", "optimizer-00000-of-00001.safetensors", "rng.safetensors", "state.json", "manifest.json"]


# What is in it


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = save(tmp_path / "made" / "on_demand", 7)
    assert path.name == "step_00000007"
    assert names(path) == sorted(FILES)
    loaded = load_checkpoint(path)
    assert (loaded.path, loaded.step) == (path, 7)
    assert torch.equal(loaded.model["lm_head.weight"], torch.full((5, 3), 7.5))
    assert torch.equal(loaded.optimizer["wte.weight/momentum"], torch.full((5, 3), -7.0))
    assert loaded.state == {"step": 7, "train": {"best_bpb": None, "used_s": 0.1}}
    assert torch.equal(loaded.rng["cpu"], torch.arange(8, dtype=torch.uint8))


def test_who_may_read_a_file_of_the_run_may_read_all_of_the_checkpoint(tmp_path):
    (tmp_path / "other").write_text("")
    path = save(tmp_path, 1)
    assert {(path / name).stat().st_mode for name in FILES} == {(tmp_path / "other").stat().st_mode}


def test_the_manifest_holds_sizes_and_hashes_of_all_other_files(tmp_path):
    path = save(tmp_path, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == 2
    assert manifest["step"] == 3
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["versions"]) == {"firstlight", "torch", "safetensors"}
    content = {name: (path / name).read_bytes() for name in FILES if name != "manifest.json"}
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
    }


def test_tensors_of_every_kind_survive(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    stack = torch.randn(3, 4, 4)
    kinds = {
        "transposed": base.T,
        "strided": base[:, ::2],
        "shared.whole": base,
        "shared.again": base,
        "shared.overlapping": base[1:3],
        "bf16": torch.randn(3, 3).bfloat16(),
        "fp16": torch.randn(3).half(),
        "scalar": torch.tensor(2.5),
        "int": torch.tensor([-1, 2**40]),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    } | {f"slice.{i}": stack[i] for i in range(3)}
    path = save_checkpoint(
        tmp_path, step=1, model=Tensors(kinds), optimizer=Tensors(dict(kinds)), state={"step": 1}
    )  # fmt: skip
    loaded = load_checkpoint(path)
    for found in (loaded.model, loaded.optimizer):
        assert set(found) == set(kinds)
        for name, tensor in kinds.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            assert torch.equal(found[name], tensor.detach()), name


def test_names_lose_the_compiled_prefix_and_nothing_else(tmp_path):
    # nanochat 8681922 used lstrip, which strips any of the letters "_orig_mod." from the left.
    model = Tensors({"_orig_mod.model.x": torch.ones(1), "_orig_mod.domain.weight": torch.ones(2), "m": torch.ones(3)})
    path = save_checkpoint(tmp_path, step=1, model=model, optimizer=Tensors({}), state={})
    assert set(load_checkpoint(path).model) == {"model.x", "domain.weight", "m"}
    assert tensor_name("transformer.h.0._orig_mod.attn.weight") == "transformer.h.0.attn.weight"
    assert tensor_name("h._orig_mod_like.weight") == "h._orig_mod_like.weight"


def test_a_compiled_model_loads_what_a_plain_one_saved_and_the_other_way_round():
    for target, source in (
        ({"_orig_mod.w": torch.zeros(2)}, {"w": torch.ones(2)}),
        ({"w": torch.zeros(2)}, {"w": torch.ones(2)}),
    ):
        load_into(target, source, what="x")
        assert all(tensor.tolist() == [1, 1] for tensor in target.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_strict_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, step=1, model=Tensors({}), optimizer=Tensors({}), state={"best_bpb": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["model", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_no_checkpoint_holds_a_number_that_is_not_finite(tmp_path, where, value):
    save(tmp_path, 1)
    tensors = {"model": {"a": torch.ones(3)}, "optimizer": {"a/m": torch.ones(3)}}
    next(iter(tensors[where].values()))[1] = value
    with pytest.raises(CheckpointError, match=r"step 2 is not saved.*NaN or Inf in .*: a"):
        save_checkpoint(
            tmp_path, step=2, model=Tensors(tensors["model"]), optimizer=Tensors(tensors["optimizer"]), state={}
        )
    assert names(tmp_path) == ["step_00000001"]


def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(tmp_path):
    import pickle

    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    for name in FILES:
        path = save(tmp_path / "c", 1)
        (path / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)
    # Also where somebody made the hashes fit: the reader itself must refuse.
    path = save(tmp_path / "c", 1)
    manifest = json.loads((path / "manifest.json").read_text())
    entry = writing._write_bytes(path / "model.safetensors", pickle.dumps(Payload()))
    manifest["files"]["model.safetensors"] = entry
    (path / "manifest.json").write_bytes(manifests.manifest_bytes(1, manifest["files"], {}))
    assert verify(path) == []
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not ran.exists()


# Finding the newest


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (999_999, 1_000_000, 99_999_999, 100_000_000):
        save(tmp_path, step)
    assert list_steps(tmp_path) == [999_999, 1_000_000, 99_999_999, 100_000_000]
    assert find_latest_good(tmp_path) == tmp_path / "step_100000000"


def test_other_names_are_passed_over_and_left_alone(tmp_path):
    save(tmp_path, 200)
    others = ["step_00000200_backup", "step_", "step_x", "model_000300", "exp1", ".tmp-mine", "step_-5", "step_1.5"]
    for name in others:
        shutil.copytree(tmp_path / "step_00000200", tmp_path / name)
    (tmp_path / "step_00000900").write_text("a file, not a folder")
    said = []
    assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000200"
    assert said == []
    save(tmp_path, 300)
    assert retain(tmp_path, keep=1) == [200]
    assert names(tmp_path) == sorted([*others, "step_00000900", "step_00000300"])


@pytest.mark.parametrize("make", [False, True])
def test_a_run_without_checkpoints_has_no_newest_one(tmp_path, make):
    if make:
        (tmp_path / "c").mkdir()
    assert find_latest_good(tmp_path / "c") is None
    assert list_steps(tmp_path / "c") == []


def test_a_renamed_folder_does_not_pass_for_another_step(tmp_path):
    save(tmp_path, 5)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / "step_00000009")
    said = []
    assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000005"
    assert "is of step 5" in said[0]


# Damage (R11, R12, users 56)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 0.7, 0.999])
def test_a_flipped_bit_is_found_and_named_and_the_one_before_is_used(tmp_path, name, position):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= 1 << random.Random(name + str(position)).randrange(8)
    file.write_bytes(content)
    said = []
    assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000001"
    assert len(said) == 1
    assert str(file) in said[0]
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(file.parent)


def test_each_bit_of_the_manifest_counts(tmp_path):
    file = save(tmp_path, 2) / "manifest.json"
    content = file.read_bytes()
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        assert verify(file.parent), f"byte {position}"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.5, "all but one byte", "one byte more", "gone"])
def test_a_cut_file_is_found_and_named_and_the_one_before_is_used(tmp_path, name, part):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    size = file.stat().st_size
    if part == "gone":
        file.unlink()
    elif part == "one byte more":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        os.truncate(file, size - 1 if isinstance(part, str) else int(part * size))
    said = []
    assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000001"
    assert str(file) in said[0]
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(file.parent)


def test_where_all_are_damaged_there_is_none_and_each_is_named(tmp_path):
    for step in (1, 2, 3):
        os.truncate(save(tmp_path, step) / "state.json", 0)
    said = []
    assert find_latest_good(tmp_path, said.append) is None
    assert [f"step_0000000{i}" in line for i, line in zip((3, 2, 1), said, strict=True)] == [True] * 3


def test_a_newer_schema_is_refused_by_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "SCHEMA", 3)
        path = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="schema 3; this firstlight reads 1 and 2"):
        load_checkpoint(path)


# A save that fails or is cut off (R10, R13)


def save_2(directory: Path) -> Path:
    return save(directory, 2, value=22)


@pytest.mark.parametrize(
    ("before", "allowed"),
    [([1], {1.0, 22.0}), ([1, 2], {2.0, 22.0}), ([2], {2.0, 22.0})],
    ids=["a new step", "a step again", "the only step again"],
)
def test_a_save_cut_off_at_any_operation_leaves_a_whole_one(tmp_path, monkeypatch, before, allowed):
    for step in before:
        save(tmp_path / "before", step)
    shutil.copytree(tmp_path / "before", tmp_path / "counting")
    total = number_of_operations(tmp_path, monkeypatch, save_2)
    seen = set()
    for k in range(total):
        directory = shutil.copytree(tmp_path / "before", tmp_path / f"cut_{k}")
        with monkeypatch.context() as patch:
            operations = Operations(patch, cut_at=k)
            try:
                save_2(directory)
                assert operations.dead  # cut off while deleting the old one, where errors are only reported
            except Cut:
                pass
        said = []
        found = find_latest_good(directory, said.append)
        assert found is not None, f"nothing is left after operation {k}"
        assert said == [], f"a partial one has a step's name after operation {k}"
        assert value_in(found) in allowed
        seen.add(value_in(found))
        # The next save of a later step clears what was left.
        save(directory, 3)
        assert [name for name in names(directory) if name.startswith(".")] == []
        # What was good before is still there, under its own name.
        assert {*before, 3} <= set(list_steps(directory))
        assert find_latest_good(directory) == directory / "step_00000003"
    assert seen == allowed


@pytest.mark.parametrize("before", [[1], [1, 2]], ids=["a new step", "a step again"])
def test_a_full_disk_at_any_operation_leaves_the_last_good_one_and_no_rubbish(tmp_path, monkeypatch, before):
    for step in before:
        save(tmp_path / "before", step)
    shutil.copytree(tmp_path / "before", tmp_path / "counting")
    total = number_of_operations(tmp_path, monkeypatch, save_2)
    messages = []
    for k in range(total):
        directory = shutil.copytree(tmp_path / "before", tmp_path / f"full_{k}")
        with monkeypatch.context() as patch:
            Operations(patch, cut_at=k, error=OSError)
            try:
                save_2(directory)
            except CheckpointError as error:
                messages.append(error.what)
        found = find_latest_good(directory)
        assert found is not None
        assert value_in(found) in (before[-1], 22.0)
        assert [name for name in names(directory) if name.startswith(".tmp-")] == []
    assert len(messages) >= 10
    assert all("No space left on device" in text and "bytes are needed" in text for text in messages)


def test_a_disk_without_room_is_refused_before_the_first_byte_with_both_numbers(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(writing, "save_file", lambda *args: pytest.fail("a byte was written"))
    # 3 tensors of 15 float32 and 8 bytes of random state, and 1 MiB to spare.
    needed = 3 * 15 * 4 + 8 + 2**20
    with pytest.raises(CheckpointError) as raised:
        save(tmp_path, 2)
    assert f"({needed:,} bytes are needed, 1,234 are free)" in raised.value.what
    assert "No space left on device" in raised.value.what
    assert "--keep" in raised.value.hint
    assert names(tmp_path) == ["step_00000001"]


def test_an_error_of_the_tensor_writer_is_a_checkpoint_error(tmp_path, monkeypatch):
    def fail(*args):
        raise SafetensorError("I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(writing, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved in .*Input/output error"):
        save(tmp_path, 2)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_a_checkpoint_error(tmp_path, monkeypatch, code):
    # By a patch: the tests may run as root, who may write everywhere.
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code), str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=os.strerror(code)):
        save(tmp_path, 1)


def test_a_file_in_place_of_the_folder_is_a_checkpoint_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be saved in .*checkpoints"):
        save(tmp_path / "checkpoints", 1)
    assert find_latest_good(tmp_path / "checkpoints") is None


def test_saving_a_step_again_replaces_it_whole(tmp_path):
    first = save(tmp_path, 4, value=1)
    (first / "optimizer-00001-of-00002.safetensors").write_text("from another world size")
    assert save(tmp_path, 4, value=2) == first
    assert value_in(first) == 2
    assert names(first) == sorted(FILES)
    assert names(tmp_path) == ["step_00000004"]


def test_every_byte_is_forced_to_the_disk_before_the_name_appears_and_the_name_after(tmp_path, monkeypatch):
    # A rename may reach the disk before the data of the renamed; then a power cut leaves a named folder of empty files.
    done = []
    fsync, rename = os.fsync, os.rename

    def fsync_noting(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def rename_noting(source, target):
        done.append(f"rename to {Path(target).name}")
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files are only known on Linux")
    monkeypatch.setattr(os, "fsync", fsync_noting)
    monkeypatch.setattr(os, "rename", rename_noting)
    save(tmp_path, 2)
    assert done == [*FILES, ".tmp-step_00000002", "rename to step_00000002", tmp_path.name]


# Loading into a model


def test_loading_names_what_does_not_fit_and_changes_nothing():
    target = {"a": torch.zeros(2), "b": torch.zeros(2, 2), "c": torch.zeros(1), "d": torch.zeros(1)}
    source = {"a": torch.ones(2), "b": torch.ones(2, 3), "c": torch.ones(1).bfloat16(), "e": torch.ones(1)}
    with pytest.raises(CheckpointError) as raised:
        load_into(target, source, what="runs/x/step_00000001")
    assert raised.value.exit_code == 4
    assert "runs/x/step_00000001 is from another architecture" in raised.value.what
    for part in ("d is missing", "e is not part of the model", "b is float32 [2, 3] instead of float32 [2, 2]"):
        assert part in raised.value.what
    assert "and 1 more" in raised.value.what
    assert all(not tensor.any() for tensor in target.values())


# Killed for real (R8)

SAVE_LOOP = """
import os, sys
from pathlib import Path
import torch
from firstlight.train.checkpoint import find_latest_good, load_checkpoint, retain, save_checkpoint

class Tensors:
    def __init__(self, tensors):
        self.tensors = tensors
    def state_dict(self):
        return self.tensors
    state_tensors = state_dict

directory = Path(sys.argv[1])
print("ready", flush=True)
step = 0
while True:
    # Told on its own line when to begin, so that imports are paid once.
    if sys.stdin.readline() == "":
        break
    child = os.fork()
    if child == 0:
        found = find_latest_good(directory, lambda text: print("DAMAGED", text, flush=True))
        step = 0
        if found is not None:
            loaded = load_checkpoint(found)
            step = loaded.step
            assert torch.equal(loaded.model["w"], torch.full((64, 1024), float(step))), step
            assert torch.equal(loaded.optimizer["w/m"], torch.full((64, 1024), -float(step))), step
        print(f"from {step} {__import__('os').getpid()}", flush=True)
        while True:
            step += 1
            filled = torch.full((64, 1024), float(step))
            save_checkpoint(directory, step=step, model=Tensors({"w": filled}), optimizer=Tensors({"w/m": -filled}),
                            state={"step": step})
            retain(directory, keep=2)
            print(f"saved {step}", flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to be fast")
def test_a_save_loop_killed_at_random_always_goes_on_from_a_whole_checkpoint(tmp_path):
    # 20 kills; the loop saves all the time, so nearly each one falls into a save or a deletion.
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_LOOP, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    rng = random.Random(5)
    begun_from = []
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(20):
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line.startswith("from "), line
            begun_from.append(int(line.split()[1]))
            for _ in range(rng.randrange(3)):
                assert process.stdout.readline().startswith("saved ")
            time.sleep(rng.uniform(0.0, 0.02))
            os.kill(int(line.split()[2]), signal.SIGKILL)
            while line != "dead\n":
                line = process.stdout.readline()
                assert line.startswith(("saved ", "dead")), line
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()
    assert begun_from == sorted(begun_from)
    assert begun_from[-1] >= 5
    assert find_latest_good(tmp_path) is not None
