"""Claims about native attention.

1. Values and gradients are those of a plain float64 computation, at odd shapes, for any grouping, gain and layout.
2. They are the same to the bit with any number of threads. 3. Large scores do not overflow, and damage is not hidden.
4. torch.compile and torch's own checks of an operation agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from firstlight.model.attention import attend_to_own
from firstlight.model.native import attention
from firstlight.model.native.attention import attend_natively
from firstlight.model.rope import rope_tables

pytestmark = pytest.mark.usefixtures("native")


def case(B: int, T: int, H: int, G: int, K: int, *, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """q, k, v, cosines, sines, and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    q, dy = torch.randn(2, B, T, H, K, generator=generator)
    k, v = torch.randn(2, B, T, G, K, generator=generator)
    return [3 * q, k, v, *rope_tables(T, K, base=100.0)], dy


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, gain: float):
    """Every step written out in the dtype of the arguments."""
    H, G, K, T = q.shape[2], k.shape[2], q.shape[3], q.shape[1]

    def turned(x: torch.Tensor) -> torch.Tensor:
        x = gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        pairs = torch.complex(x[..., : K // 2], x[..., K // 2 :]) * torch.complex(cos, -sin)[:, None]
        return torch.cat((pairs.real, pairs.imag), -1)

    q, k = turned(q), turned(k).repeat_interleave(H // G, 2)
    scores = torch.einsum("bthk,bshk->bhts", q, k) / K**0.5
    weights = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshk->bthk", weights, v.repeat_interleave(H // G, 2))


def values_and_gradients(function, tensors: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    y = function(*leaves, *tensors[3:])
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("gain", [1.0, 1.3])
@pytest.mark.parametrize(
    ("B", "T", "H", "G", "K"),
    [
        (1, 1, 1, 1, 2),
        (2, 7, 2, 2, 8),
        (1, 63, 1, 1, 16),
        (2, 64, 4, 2, 20),
        (1, 65, 3, 1, 32),
        (3, 129, 2, 1, 6),
        (2, 513, 2, 2, 64),
        (1, 200, 1, 1, 128),
    ],
)
def test_values_and_gradients_are_the_plain_ones(B: int, T: int, H: int, G: int, K: int, gain: float) -> None:
    tensors, dy = case(B, T, H, G, K)
    found = values_and_gradients(lambda *x: attend_natively(*x, gain=gain), tensors, dy)
    expected = values_and_gradients(lambda *x: plain(*x, gain), [x.double() for x in tensors], dy.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        # A single token's query and key get no gradient: there the expected one is rounding.
        assert (ours - theirs).abs().max() < 3e-6 * max(theirs.abs().max().item(), 0.1)


def test_what_is_in_another_layout_is_read_rightly() -> None:
    tensors, dy = case(2, 33, 4, 2, 16)
    expected = values_and_gradients(lambda *x: attend_natively(*x, gain=1.0), tensors, dy)
    twisted = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:3]] + tensors[3:]
    longer = [torch.cat((x, x))[: len(x)] for x in twisted[3:]]
    found = values_and_gradients(
        lambda *x: attend_natively(*x, gain=1.0),
        [*twisted[:3], *longer],
        dy.transpose(0, 2).contiguous().transpose(0, 2),
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_columns_of_one_matrix_are_read_and_written_where_they_lie() -> None:
    B, T, H, G, K = 2, 33, 4, 2, 16
    tensors, dy = case(B, T, H, G, K)
    expected = values_and_gradients(lambda *x: attend_natively(*x, gain=1.0), tensors, dy)
    together, gradients = torch.cat([x.flatten(2) for x in tensors[:3]], -1), torch.full((B, T, 8 * K + 1), 7.0)
    parts = [x.unflatten(2, (-1, K)) for x in together.split((H * K, G * K, G * K), -1)]
    y, log_sums = attention.attention_forward(*parts, *tensors[3:], 1.0)
    assert torch.equal(y, expected[0])
    # One column more than there are heads: it stays as it is, and another row length is refused.
    into = tuple(x.unflatten(2, (-1, K)) for x in gradients[..., :-1].split((H * K, G * K, G * K), -1))
    with pytest.raises(ValueError, match="must lie as these do"):
        attention.attention_backward_into(into, (*parts, *tensors[3:]), 1.0, y, log_sums, dy)
    wider = torch.cat((together, torch.zeros(B, T, 1)), -1)[..., :-1]
    parts = [x.unflatten(2, (-1, K)) for x in wider.split((H * K, G * K, G * K), -1)]
    attention.attention_backward_into(into, (*parts, *tensors[3:]), 1.0, y, log_sums, dy)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(into, expected[1:], strict=True))
    assert (gradients[..., -1] == 7).all()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 150, 4, 2, 16), (1, 150, 2, 1, 16)], ids=["groups", "blocks apart"])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, ...], threads: None) -> None:
    tensors, dy = case(*shape)
    found = []
    for num_threads in (1, 2, 3, 5):
        torch.set_num_threads(num_threads)
        found.append(values_and_gradients(lambda *x: attend_natively(*x, gain=1.0), tensors, dy))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_large_scores_do_not_overflow() -> None:
    tensors, dy = case(1, 70, 2, 1, 64)
    gain = 12.0  # scores of up to 144 * 8 = 1152
    found = values_and_gradients(lambda *x: attend_natively(*x, gain=gain), tensors, dy)
    expected = values_and_gradients(lambda *x: plain(*x, gain), [x.double() for x in tensors], dy.double())
    assert all(torch.isfinite(x).all() for x in found)
    # A score of a thousand has an error of 1e-4 in float32, and so has the logarithm of its weight.
    assert (found[0] - expected[0]).abs().max() < 2e-3


def test_a_damaged_token_is_seen_and_reaches_no_earlier_block() -> None:
    for index in range(3):
        tensors, _ = case(1, 200, 1, 1, 16)
        whole = attend_natively(*tensors, gain=1.0)
        tensors[index][0, 150] = float("nan")
        damaged = attend_natively(*tensors, gain=1.0)
        assert damaged[0, 150].isnan().all(), "qkv"[index]
        assert torch.equal(damaged[0, :128], whole[0, :128])


def test_compiled_code_calls_it() -> None:
    tensors, dy = case(2, 40, 2, 1, 8)
    compiled = torch.compile(
        lambda *x: attend_to_own(*x, gain=1.0, kernel="native"), fullgraph=True, dynamic=False, backend="aot_eager"
    )
    found = values_and_gradients(compiled, tensors, dy)
    expected = values_and_gradients(lambda *x: attend_natively(*x, gain=1.0), tensors, dy)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_torchs_checks_of_an_operation_pass() -> None:
    tensors, _ = case(1, 9, 2, 1, 4)
    leaves = [x.requires_grad_() for x in tensors[:3]]
    torch.library.opcheck(torch.ops.firstlight.attention.default, (*leaves, *tensors[3:], 1.0))


def test_other_tensors_are_refused() -> None:
    tensors, _ = case(1, 9, 2, 1, 4)
    with pytest.raises(ValueError, match="float32 on a CPU"):
        attend_natively(*(x.bfloat16() for x in tensors), gain=1.0)
    with pytest.raises(ValueError, match="cannot attend to"):
        attend_natively(tensors[0], tensors[1], tensors[2][:, 1:], *tensors[3:], gain=1.0)
    with pytest.raises(ValueError, match="angles of 9 tokens"):
        attend_natively(*tensors[:3], tensors[3][1:], tensors[4][1:], gain=1.0)


@pytest.mark.parametrize("shape", [(2, 0, 2, 1, 4), (0, 5, 2, 1, 4)], ids=["no tokens", "no rows"])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    tensors, dy = case(*shape)
    found = values_and_gradients(lambda *x: attend_natively(*x, gain=1.0), tensors, dy)
    assert [x.shape for x in found] == [dy.shape, *(x.shape for x in tensors[:3])]


def test_angles_may_have_been_cast_with_the_model() -> None:
    tensors, _ = case(1, 9, 2, 1, 4)
    rounded = [*tensors[:3], *(x.bfloat16() for x in tensors[3:])]
    assert torch.equal(
        attend_natively(*rounded, gain=1.0), attend_natively(*rounded[:3], *(x.float() for x in rounded[3:]), gain=1.0)
    )


def test_the_blocks_are_those_of_the_source() -> None:
    (rows,) = re.findall(r"constexpr int BLOCK = (\d+);", attention.SOURCE.read_text())
    assert int(rows) == attention.BLOCK_ROWS
