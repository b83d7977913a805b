"""Claims about blocks with their gradients written out.

1. Values and every gradient are those of the block of modules in float64: both MLPs, grouped heads, with and without value
embeddings, at odd shapes. 2. They are the same to the bit with any number of threads. 3. Damage is not hidden, and neither
is a second backward pass. 4. Whole models agree as well, with recomputation, and nothing imports torch's compiler.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from firstlight.model.config import GPTConfig
from firstlight.model.gpt import Block
from firstlight.model.init import build_gpt
from firstlight.model.native.layer import mlp_branch, norm
from firstlight.model.rope import rope_tables

pytestmark = pytest.mark.usefixtures("native")

FLAT = {"n_layer": 2, "vocab_size": 96, "max_seq_len": 640}


def values_and_gradients(
    config: GPTConfig, B: int, T: int, *, has_values: bool, dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    """A block's result and the gradients of all that is given to it: written out in float32, of modules in float64."""
    generator = torch.Generator().manual_seed(seed)
    block = Block(config, compute_dtype=dtype, has_value_embed=has_values).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    x, dy = (torch.randn(B, T, config.n_embd, generator=generator) for _ in range(2))
    value = torch.randn(B, T, config.n_kv_head * config.head_dim, generator=generator)
    leaves = [t.to(dtype).requires_grad_() for t in ((x, value) if has_values else (x,))]
    cos, sin = (t[:T].to(dtype) for t in rope_tables(config.max_seq_len, config.head_dim, base=100.0))
    y = block(
        leaves[0], cos, sin, leaves[1] if has_values else None,
        layer=0, cache=None, kernel=None if dtype == torch.float32 else "sdpa", written_out=dtype == torch.float32,
    )  # fmt: skip
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *block.parameters()], dy.to(dtype))]


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
@pytest.mark.parametrize("has_values", [False, True])
@pytest.mark.parametrize(
    ("B", "T", "D", "H", "G"),
    [(1, 1, 8, 1, 1), (2, 7, 24, 2, 1), (3, 65, 40, 4, 2), (1, 513, 64, 2, 2), (2, 33, 128, 1, 1)],
)
def test_values_and_gradients_are_those_of_the_modules(
    B: int, T: int, D: int, H: int, G: int, has_values: bool, mlp: str
) -> None:
    config = GPTConfig(n_embd=D, n_head=H, n_kv_head=G, mlp=mlp, mlp_width=3 * D + 2, value_embed_every=2, **FLAT)
    found, expected = (
        values_and_gradients(config, B, T, has_values=has_values, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert len(found) == len(expected) >= 8
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float32
        # A single token's query and key get no gradient: there the expected one is rounding.
        assert (ours - theirs).abs().max() < 1e-5 * max(theirs.abs().max().item(), 1.0)


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_bits_do_not_depend_on_threads(mlp: str) -> None:
    config = GPTConfig(n_embd=48, n_head=2, n_kv_head=2, mlp=mlp, value_embed_every=1, **FLAT)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(values_and_gradients(config, 3, 33, has_values=True, dtype=torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_norm_is_torchs() -> None:
    x = torch.randn(5, 3, 37, generator=torch.Generator().manual_seed(0))
    x[2, 1] = 0
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ours = x.clone().requires_grad_()
    theirs = x.double().requires_grad_()
    expected = functional.rms_norm(theirs, (37,), eps=1e-6)
    torch.testing.assert_close(norm(ours), expected.float(), rtol=2e-6, atol=1e-6)
    (found,) = torch.autograd.grad(norm(ours), ours, dy)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, theirs, dy.double())[0].float(), rtol=2e-6, atol=1e-4
    )


@pytest.mark.parametrize("gate", [False, True])
def test_large_and_damaged_numbers_are_those_of_torch(gate: bool) -> None:
    """Numbers whose exponentials overflow, infinities, and NaN, at places of a whole vector and behind it."""
    size = 37
    x = torch.randn(1, 4, size, generator=torch.Generator().manual_seed(0))
    up, down = 1e4 * torch.eye(size), torch.eye(size)
    x[0, 1, [0, 36]] = float("nan")
    found = mlp_branch(x, up, down, up if gate else None)
    n = functional.rms_norm(x, (size,), eps=1e-6)
    expected = x + (functional.silu(n @ up.T) * (n @ up.T) if gate else functional.relu(n @ up.T).square()) @ down.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3, equal_nan=True)
    assert found[0, 1].isnan().all()
    assert found[0, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("gate", [False, True])
def test_a_second_backward_pass_is_refused(gate: bool) -> None:
    x = torch.ones(1, 2, 8, requires_grad=True)
    weight = torch.ones(8, 8)
    y = mlp_branch(x, weight, weight, weight if gate else None).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        y.backward()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 on a CPU is needed, not \['torch.float64 on cpu'\]"):
        norm(torch.ones(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
@pytest.mark.parametrize("recompute", [False, True])
def test_whole_models_agree(preset: str, recompute: bool) -> None:
    config = GPTConfig.from_depth(2, vocab_size=160, max_seq_len=48, preset=preset)
    ids = torch.randint(160, (2, 48), generator=torch.Generator().manual_seed(0))
    results = []
    for written_out in (True, False):
        model = build_gpt(config, seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02
        model.written_out, model.checkpoint_activations = written_out, recompute
        loss = model(ids).logsumexp(-1).sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * max(theirs.abs().max().item(), 1.0)


def test_empty_rows_come_back_empty() -> None:
    model = build_gpt(GPTConfig(n_embd=16, n_head=2, n_kv_head=2, **FLAT), seed=0)
    model.written_out = True
    assert model.hidden(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 16)


def test_training_imports_no_compiler() -> None:
    code = """
import sys, torch
from firstlight.model.config import GPTConfig
from firstlight.model.init import build_gpt
model = build_gpt(GPTConfig(n_embd=16, n_head=2, n_kv_head=2, n_layer=1, vocab_size=64, max_seq_len=8), seed=0)
model.written_out = True
model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
