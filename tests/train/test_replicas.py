"""One flipped bit on one rank is found, with the tensor's name and the rank; equal replicas are silent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import run_ranks

from firstlight.runtime.context import Runtime
from firstlight.train.replicas import CHUNK, checksums, find_differences


def oracle(tensor: torch.Tensor) -> int:
    """The documented sum, with Python's numbers, which have no end; read back as a signed 64-bit number."""
    whole = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[tensor.element_size()]
    bits = np.frombuffer(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), whole)
    total = sum(int(value) * (2 * i + 1) for i, value in enumerate(bits)) % 2**64
    return total - 2**64 if total >= 2**63 else total


def checksum(tensor: torch.Tensor) -> int:
    return int(checksums([("x", tensor)])[0])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (0,)])
def test_the_checksum_is_the_documented_sum(dtype, shape):
    torch.manual_seed(0)
    tensor = (100 * torch.randn(shape)).to(dtype)
    assert checksum(tensor) == oracle(tensor)


def test_the_checksum_of_a_tensor_of_several_chunks_is_the_documented_sum():
    torch.manual_seed(1)
    tensor = torch.randn(CHUNK + 1000)
    assert checksum(tensor) == oracle(tensor)


def test_a_strided_view_has_the_checksum_of_its_values():
    tensor = torch.randn(6, 4)
    assert checksum(tensor.T) == oracle(tensor.T.contiguous()) != checksum(tensor)


@pytest.mark.parametrize("bit", range(32))
@pytest.mark.parametrize("place", [0, 1, CHUNK - 1, CHUNK, CHUNK + 9])
def test_any_single_flipped_bit_changes_the_checksum(bit, place):
    tensor = torch.zeros(CHUNK + 10)
    before = checksum(tensor)
    tensor.view(torch.int32)[place] ^= torch.tensor(-(2**31) if bit == 31 else 2**bit, dtype=torch.int32)
    assert checksum(tensor) != before


def test_swapped_elements_and_two_opposite_flips_change_the_checksum():
    tensor = torch.randn(100)
    swapped = tensor.clone()
    swapped[3], swapped[70] = tensor[70], tensor[3]
    flipped = tensor.clone()
    flipped[3], flipped[70] = -tensor[3], -tensor[70]
    assert len({checksum(tensor), checksum(swapped), checksum(flipped)}) == 3


def weights() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(5)
    return [("wte.weight", torch.randn(512, 64)), ("h.0.fc.weight", torch.randn(64, 256)), ("scale", torch.randn(3))]


def compare(runtime: Runtime, broken: dict[int, list[int]]) -> list[str]:
    """Flip the lowest bit of one element of the given tensors on the given ranks; a rank's number is part of the change."""
    named = weights()
    for place in broken.get(runtime.rank, []):
        named[place][1].view(torch.int32).view(-1)[runtime.rank] ^= 1
    return find_differences(named, runtime)


def test_equal_replicas_have_no_differences():
    assert run_ranks(compare, 2, {}) == [[], []]


def test_one_rank_of_three_with_one_flipped_bit_is_named_on_all_ranks():
    found = run_ranks(compare, 3, {1: [1]})
    assert found == [["h.0.fc.weight: rank 1 of 3 differs from the rest"]] * 3


def test_of_two_ranks_neither_can_be_called_the_right_one():
    found = run_ranks(compare, 2, {1: [2, 0]})
    words = "2 of 2 ranks differ, and no value is that of most"
    assert found == [[f"wte.weight: {words}", f"scale: {words}"]] * 2


def test_several_ranks_that_differ_from_most_are_all_named():
    found = run_ranks(compare, 5, {0: [0], 3: [0]})
    assert found == [["wte.weight: ranks 0, 3 of 5 differ from the rest"]] * 5


def test_one_process_compares_nothing():
    assert find_differences(iter([("x", torch.zeros(1, dtype=torch.complex128))]), Runtime(torch.device("cpu"))) == []
