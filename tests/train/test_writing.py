"""One checkpoint by several processes: all of it or nothing, whoever fails, and every one of them knows."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors import safe_open
from torn import SHAPES, Cut, Operations, assert_holds, in_threads, names, share_of, whole_tensors

from firstlight.errors import CheckpointError
from firstlight.runtime.channel import Channel
from firstlight.train import writing
from firstlight.train.checkpoint import find_latest_good, load_checkpoint, verify
from firstlight.train.writing import ProcessesApart, Share, copy_to_host, write_checkpoint


def write(directory, channel, step, *, value=None, shapes=None, **changes):
    """One rank's part in a save of `whole_tensors`."""
    parts = share_of(channel.rank, channel.world_size, float(step if value is None else value)) | changes
    share = Share(*(copy_to_host(parts[name], {}) for name in ("model", "optimizer")), {"cpu": torch.zeros(4)})
    return write_checkpoint(
        directory, share, step=step, state=b'{"step": 1}\n', shapes=SHAPES if shapes is None else shapes, channel=channel
    )  # fmt: skip


def save_at(world_size, directory, step, **options):
    """Results of a save by ranks that are threads."""
    return in_threads(world_size, lambda channel: write(directory, channel, step, **options))


# Whole


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_a_save_of_any_number_of_ranks_holds_the_same_tensors(tmp_path, world_size):
    results = save_at(world_size, tmp_path, 4)
    path = tmp_path / "step_00000004"
    num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.json")
    assert results == [(path, num_bytes)] * world_size
    shares = [f"optimizer-{rank:05d}-of-{world_size:05d}.safetensors" for rank in range(world_size)]
    assert names(path) == sorted(["manifest.json", "model.safetensors", *shares, "rng.safetensors", "state.json"])
    assert_holds(path, 4)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["shapes"] == {"w/momentum": [7, 5]}  # b's state is stored whole
    assert load_checkpoint(path).num_processes == world_size


def test_a_rank_writes_only_its_own_share(tmp_path):
    save_at(3, tmp_path, 1)
    keys = []
    for rank in range(3):
        with safe_open(tmp_path / "step_00000001" / f"optimizer-0000{rank}-of-00003.safetensors", "pt") as file:
            keys.append(sorted(file.keys()))
    assert keys == [["w/momentum[0:11]"], ["w/momentum[11:23]"], ["b/momentum", "w/momentum[23:35]"]]


def test_weights_in_shares_get_a_file_for_each_rank(tmp_path):
    def one(channel):
        w = whole_tensors(0.0)[0]["w"].view(-1)
        halves = [{"w[0:20]": w[:20]}, {"w[20:35]": w[20:], "b": whole_tensors(0.0)[0]["b"]}]
        return write(
            tmp_path, channel, 1, value=0, model=halves[channel.rank], shapes=SHAPES | {"w": (7, 5), "b": (3,)}
        )

    path, _ = in_threads(2, one)[0]
    assert [name for name in names(path) if name.startswith("model")] == [
        "model-00000-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
    ]
    assert_holds(path, 0)


def test_a_flipped_bit_in_the_share_of_any_rank_is_found_and_named(tmp_path):
    save_at(3, tmp_path, 1)
    save_at(3, tmp_path, 2)
    path = tmp_path / "step_00000002"
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 4
        for wrong in (bytes(damaged), content[: len(content) // 2], content + b"\0"):
            file.write_bytes(wrong)
            said = []
            assert find_latest_good(tmp_path, said.append) == tmp_path / "step_00000001"
            assert str(file) in said[0]
        file.write_bytes(content)
    assert verify(path) == []


def save_and_load(runtime, directory):
    write(Path(directory), runtime.background, 7)
    return names(Path(directory) / "step_00000007")


def load_share(runtime, path):
    """What a rank of another world size reads: its even part of the flattened tensors."""
    loaded = load_checkpoint(Path(path), verified=True)
    found = {}
    for name in loaded.optimizer:
        n = loaded.optimizer[name].numel()
        start, stop = (n * i // runtime.world_size for i in (runtime.rank, runtime.rank + 1))
        found[name] = loaded.optimizer.piece(name, start, stop).tolist()
    return found


def test_what_two_processes_saved_one_and_three_load(tmp_path):
    files = run_ranks(save_and_load, 2, str(tmp_path))
    assert files[0] == files[1]
    assert "optimizer-00001-of-00002.safetensors" in files[0]
    path = tmp_path / "step_00000007"
    assert_holds(path, 7)
    shares = run_ranks(load_share, 3, str(path))
    for name, tensor in whole_tensors(7.0)[1].items():
        assert sum((share[name] for share in shares), []) == tensor.view(-1).tolist()  # noqa: RUF017


# Torn (R10)


def test_a_save_of_two_ranks_cut_off_at_any_operation_leaves_a_whole_one(tmp_path, monkeypatch):
    save_at(2, tmp_path / "before", 1)
    shutil.copytree(tmp_path / "before", tmp_path / "counting")
    with monkeypatch.context() as patch:
        operations = Operations(patch)
        save_at(2, tmp_path / "counting", 2)
    assert operations.done.count("save_file") == 4  # weights, random states, and the optimizer's two shares
    seen = set()
    for k in range(len(operations.done)):
        directory = shutil.copytree(tmp_path / "before", tmp_path / f"cut_{k}")
        with monkeypatch.context() as patch:
            Operations(patch, cut_at=k)
            results = save_at(2, directory, 2)
        assert any(isinstance(result, BaseException) for result in results), k
        said = []
        found = find_latest_good(directory, said.append)
        assert said == [], f"a partial one has a step's name after operation {k}"
        assert found is not None
        assert_holds(found, int(found.name[-1]))
        seen.add(found.name)
        save_at(2, directory, 3)
        assert [name for name in names(directory) if name.startswith(".")] == []
    assert seen == {"step_00000001", "step_00000002"}


# Refused (R13)

FILES_OF_TWO = [
    ("model.safetensors", 0), ("optimizer-00000-of-00002.safetensors", 0), ("rng.safetensors", 0), ("state.json", 0),
    ("manifest.json", 0), ("optimizer-00001-of-00002.safetensors", 1),
]  # fmt: skip


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(("file", "rank"), FILES_OF_TWO)
def test_a_disk_that_refuses_any_file_of_any_rank_is_known_to_all(tmp_path, monkeypatch, file, rank, code):
    save_at(2, tmp_path, 1)
    tensors, text = writing._write_tensors, writing._write_bytes

    def refusing(original):
        def write_file(path, content):
            if path.name == file:
                path.write_bytes(b"half of it")
                raise OSError(code, os.strerror(code), str(path))
            return original(path, content)

        return write_file

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_tensors", refusing(tensors))
        patch.setattr(writing, "_write_bytes", refusing(text))
        results = save_at(2, tmp_path, 2)
    # 38 weights, 38 numbers of state and 2 x 4 of random state, float32, and 1 MiB to spare.
    needed = (38 + 38 + 2 * 4) * 4 + 2**20
    for error in results:
        assert isinstance(error, CheckpointError)
        assert error.what.startswith(f"rank {rank}: the checkpoint of step 2 could not be saved in {tmp_path}")
        assert os.strerror(code) in error.what
        assert f"({needed:,} bytes are needed" in error.what
        assert "untouched" in error.hint
    assert names(tmp_path) == ["step_00000001"]
    assert_holds(tmp_path / "step_00000001", 1)
    save_at(2, tmp_path, 3)
    assert_holds(tmp_path / "step_00000003", 3)


def test_a_number_that_is_not_finite_on_one_rank_stops_the_save_on_all(tmp_path):
    def one(channel):
        changes = {"optimizer": {"b/momentum": torch.tensor([1.0, float("nan")])}} if channel.rank == 1 else {}
        return write(tmp_path, channel, 2, **changes)

    for error in in_threads(2, one):
        assert isinstance(error, CheckpointError)
        assert "rank 1: the checkpoint of step 2 is not saved" in error.what
        assert "NaN or Inf in optimizer-00001-of-00002.safetensors: b/momentum" in error.what
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"w/momentum[20:35]": torch.zeros(15)}}, "w/momentum lacks elements 17 to 20"),
        ({"optimizer": {"w/momentum[10:35]": torch.zeros(25)}}, "w/momentum has elements 10 to 17 twice"),
        ({"optimizer": {"w/momentum[17:35]": torch.zeros(18)}}, "no process brought the whole of b/momentum"),
        (
            {"optimizer": {"w/momentum[17:35]": torch.zeros(18), "b/momentum": torch.zeros(4)}},
            "the whole of b/momentum",
        ),
    ],
    ids=["missing elements", "elements twice", "a missing tensor", "a tensor of another shape"],
)
def test_shares_that_are_no_whole_are_no_checkpoint(tmp_path, changes, said):
    results = in_threads(2, lambda channel: write(tmp_path, channel, 1, **(changes if channel.rank else {})))
    assert all(isinstance(error, CheckpointError) and said in error.what for error in results), results
    assert names(tmp_path) == []


def test_a_mistake_in_the_program_on_one_rank_is_an_error_on_all(tmp_path, monkeypatch):
    def wrong(path, content):
        raise KeyError("spam")

    monkeypatch.setattr(writing, "_write_bytes", wrong)
    for error in save_at(2, tmp_path, 1):
        assert isinstance(error, CheckpointError)
        assert "rank 0" in error.what
        assert "KeyError: 'spam'" in error.what
    assert names(tmp_path) == []


def test_a_rank_that_does_not_see_the_first_ones_folder_says_so(tmp_path):
    def one(channel):
        return write(tmp_path / f"disk_{channel.rank}", channel, 1)

    for error in in_threads(2, one):
        assert "rank 1" in error.what
        assert "all need the same disk" in error.what


# Processes that end


def fail_on_rank_1(runtime, directory):
    if runtime.rank == 1:

        def full(tensors, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        writing.save_file = full
    try:
        write(Path(directory), runtime.background, 5)
    except CheckpointError as error:
        return error.what
    return "saved"


def test_where_one_of_three_processes_fails_all_three_say_which_and_why(tmp_path):
    save_at(3, tmp_path, 4)
    told = run_ranks(fail_on_rank_1, 3, str(tmp_path))
    assert len(set(told)) == 1
    assert "rank 1: the checkpoint of step 5 could not be saved" in told[0]
    assert "No space left on device" in told[0]
    assert names(tmp_path) == ["step_00000004"]
    assert_holds(tmp_path / "step_00000004", 4)


def test_a_channel_that_breaks_is_an_error_that_says_what_to_do(tmp_path):
    class Broken(Channel):
        def gather_texts(self, text):
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(ProcessesApart, match="cannot reach each other: Connection closed by peer") as raised:
        write(tmp_path, Broken(), 1)
    assert "--resume" in raised.value.hint


def test_ranks_at_different_steps_do_not_mix(tmp_path):
    results = in_threads(2, lambda channel: write(tmp_path, channel, 1 + channel.rank))
    assert all(isinstance(error, ProcessesApart) and "different ones: 1, 2" in error.what for error in results)


def test_a_rank_that_is_killed_ends_the_save_of_the_other(tmp_path, monkeypatch):
    original = writing._write_tensors

    def killed(path, tensors):
        if "00001-of" in path.name:
            raise Cut
        return original(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_tensors", killed)
        first, second = save_at(2, tmp_path, 1)
    assert isinstance(first, ProcessesApart)
    assert isinstance(second, Cut)
    assert find_latest_good(tmp_path) is None


# Host buffers


def test_copies_go_into_the_same_memory_again():
    tensors = {"a": torch.randn(70_000), "b": torch.randn(3, 4).T, "c": torch.tensor(2.0), "gone": torch.zeros(1)}
    buffers: dict[str, torch.Tensor] = {}
    first = copy_to_host(tensors, buffers)
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    del tensors["gone"]
    for tensor in tensors.values():
        tensor.add_(1)
    assert not torch.equal(first["a"], tensors["a"])
    second = copy_to_host(tensors, buffers)
    assert set(second) == set(tensors) == set(buffers)
    for name, tensor in tensors.items():
        assert torch.equal(second[name], tensor)
        assert second[name].is_contiguous()
        assert second[name].data_ptr() == places[name]


def test_a_tensor_of_another_size_or_kind_gets_new_memory():
    buffers: dict[str, torch.Tensor] = {}
    copy_to_host({"a": torch.zeros(3)}, buffers)
    for tensor in (torch.ones(4), torch.ones(4).bfloat16(), torch.ones(2, 2).bfloat16()):
        assert torch.equal(copy_to_host({"a": tensor}, buffers)["a"], tensor)
