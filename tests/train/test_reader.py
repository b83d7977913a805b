"""Tensors come back from any pieces, whole or in part; pieces that do not make a whole are refused by name and file."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from safetensors.torch import save_file

from firstlight.errors import CheckpointError
from firstlight.train import reader as reader_module
from firstlight.train.reader import TensorReader, split_piece


def write(folder, *files):
    """The tensors in numbered files; their paths."""
    paths = [folder / f"{i}.safetensors" for i in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    return paths


@pytest.mark.parametrize("seed", range(5))
def test_any_cut_into_pieces_over_any_files_reads_as_the_whole(tmp_path, seed):
    rng = random.Random(seed)
    shapes = [(6, 7), (13,), (2, 3, 4), (), (5, 1), (0, 4)]
    dtypes = [torch.float32, torch.bfloat16, torch.int64]
    whole, files = {}, [{}, {}, {}]
    for i, shape in enumerate(shapes):
        tensor = torch.randint(-99, 99, shape).to(rng.choice(dtypes))
        whole[f"t{i}"] = tensor
        n = tensor.numel()
        bounds = [0, *sorted(rng.choices(range(n + 1), k=rng.randrange(4))), n]
        if rng.random() < 0.3:
            rng.choice(files)[f"t{i}"] = tensor
            continue
        for start, stop in itertools.pairwise(bounds):
            rng.choice(files)[f"t{i}[{start}:{stop}]"] = tensor.reshape(-1)[start:stop].clone()
    reader = TensorReader(write(tmp_path, *files), {name: list(tensor.shape) for name, tensor in whole.items()})
    assert set(reader) == set(whole)
    assert len(reader) == len(whole)
    for name, tensor in whole.items():
        assert reader.shape(name) == tuple(tensor.shape)
        assert reader.dtype(name) is tensor.dtype
        assert reader[name].dtype is tensor.dtype
        assert torch.equal(reader[name], tensor)
        for _ in range(6):
            start, stop = sorted(rng.choices(range(tensor.numel() + 1), k=2))
            found = reader.piece(name, start, stop)
            assert found.dtype is tensor.dtype
            assert torch.equal(found, tensor.reshape(-1)[start:stop]), f"{name}[{start}:{stop}]"


def test_only_the_pieces_and_rows_that_are_needed_are_read(tmp_path, monkeypatch):
    a = torch.arange(100.0)
    paths = write(tmp_path, {"a[0:40]": a[:40], "m": a.clone().view(20, 5)}, {"a[40:100]": a[40:].clone()})
    reader = TensorReader(paths, {"a": (10, 10)})
    read = []
    original = reader_module.TensorReader._read

    def noting(self, part, first_row=0, stop_row=None):
        read.append((part.key, first_row, stop_row))
        return original(self, part, first_row, stop_row)

    monkeypatch.setattr(reader_module.TensorReader, "_read", noting)
    assert reader.piece("a", 10, 20).tolist() == list(range(10, 20))
    assert reader.piece("a", 38, 42).tolist() == [38, 39, 40, 41]
    assert reader.piece("m", 12, 16).tolist() == [12, 13, 14, 15]
    assert read == [("a[0:40]", 10, 20), ("a[0:40]", 38, 40), ("a[40:100]", 0, 2), ("m", 2, 4)]


def test_a_reader_is_a_mapping(tmp_path):
    reader = TensorReader(write(tmp_path, {"a": torch.ones(2), "b[0:1]": torch.ones(1)}), {"b": (1,)})
    assert "a" in reader
    assert "b[0:1]" not in reader
    assert "c" not in reader
    assert sorted(name for name, _ in reader.items()) == ["a", "b"]
    assert reader.in_pieces == {"b"}
    with pytest.raises(KeyError):
        reader["c"]


A = torch.arange(10.0)


@pytest.mark.parametrize(
    ("files", "shape", "said"),
    [
        (
            [{"a[0:4]": A[:4]}, {"a[6:10]": A[6:]}],
            (10,),
            "tensor a lacks elements 4 to 6, before those in .*1.safetensors",
        ),
        ([{"a[2:10]": A[2:]}], (10,), "tensor a lacks elements 0 to 2, before those in .*0.safetensors"),
        ([{"a[0:4]": A[:4]}, {"a[4:8]": A[4:8]}], (2, 5), "has 10 elements; its pieces end at 8, in .*1.safetensors"),
        (
            [{"a[0:6]": A[:6]}, {"a[4:10]": A[4:]}],
            (10,),
            "elements 4 to 6 twice: in .*0.safetensors and .*1.safetensors",
        ),
        ([{"a[0:10]": A}, {"a[0:10]": A}], (10,), "elements 0 to 10 twice: in .*0.safetensors and .*1.safetensors"),
        ([{"a": A}, {"a": A}], None, "tensor a is stored twice: in .*0.safetensors and .*1.safetensors"),
        ([{"a": A}, {"a[0:10]": A}], (10,), "twice"),
        ([{"a[0:10]": A}], None, "tensor a is in pieces .*0.safetensors.*shape is not known"),
        ([{"a[0:10]": A[:9]}], (10,), r"tensor a\[0:10\] in .*0.safetensors has shape \[9\]"),
        ([{"a[0:4]": A[:4]}, {"a[4:10]": A[4:].int()}], (10,), "two kinds: F32 in .*0.safetensors and I32 in .*1"),
    ],
)
def test_pieces_that_are_not_a_whole_are_refused_by_tensor_and_file(tmp_path, files, shape, said):
    copies = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in files]
    paths = write(tmp_path, *copies)
    with pytest.raises(CheckpointError, match=said):
        TensorReader(paths, {"a": shape} if shape else {})


def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x04not this format")
    with pytest.raises(CheckpointError, match=re.escape(f"{path} cannot be read")):
        TensorReader([path])
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorReader([tmp_path / "missing.safetensors"])


@pytest.mark.parametrize("key", ["a[1:2", "a[:2]", "[0:1]", "a[1:2]b", "a[-1:2]"])
def test_a_name_that_only_looks_like_a_piece_is_a_name(key):
    assert split_piece(key) == (key, None, None)
