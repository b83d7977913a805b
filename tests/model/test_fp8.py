"""Claims about products in fp8.

1. Rounding to 8 bits is what arithmetic by hand gives; a number that is not finite is never lost in it.
2. Forward and both gradients equal float64 products of the rounded operands, and are as near to the exact ones as the
   formats allow, at any number of rows.
3. Operands have the layouts and sizes that CUDA demands (checked by torch's own rules, without a GPU).
4. Compiled as one graph it gives the same numbers.
5. A model switched to it keeps names and parameters, is the old one in eval mode, and learns as it does in bf16.
6. It is refused, with the reason, where the hardware has no such products.
"""

from __future__ import annotations

import shutil
import types
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from firstlight.errors import ConfigError
from firstlight.model.config import GPTConfig
from firstlight.model.fp8 import E4M3, E5M2, Fp8Linear, check_fp8, fp8_linear, quantize, transposed, use_fp8
from firstlight.model.init import build_gpt

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = GPTConfig.from_depth(2, vocab_size=97, max_seq_len=24, preset="modern")
HAS_FP8_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def exact_products(x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """Output, grad-input and grad-weight in float64."""
    x, dy = x.double().reshape(-1, x.shape[-1]), dy.double().reshape(-1, dy.shape[-1])
    return [x @ weight.double().T, dy @ weight.double(), dy.T @ x]


def run(x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor, *, apply=fp8_linear) -> list[torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = apply(x, weight, dtype=torch.bfloat16)
    y.backward(dy)
    assert x.grad is not None
    assert weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


def test_rounding_by_hand() -> None:
    # 7 becomes 448, so the scale is 1/64. 6.4 lies between 6 and 6.5; -211.2 between -208 and -224.
    x8, scale = quantize(torch.tensor([7.0, 0.1, -3.3, 0.0]), E4M3)
    assert scale.item() == 1 / 64
    assert x8.float().tolist() == [448.0, 6.5, -208.0, 0.0]
    # 7 becomes 57344 = 7 * 2^13. 0.1 * 2^13 = 819.2 lies between 768 and 896; -3.3 * 2^13 = -27033.6 between 24576 and 28672.
    x8, scale = quantize(torch.tensor([7.0, 0.1, -3.3, 0.0]), E5M2)
    assert scale.item() == 2.0**-13
    assert x8.float().tolist() == [57344.0, 768.0, -28672.0, 0.0]


def test_zeros_stay_zeros() -> None:
    x8, scale = quantize(torch.zeros(3, 16), E4M3)
    assert torch.isfinite(scale)
    assert x8.float().abs().max() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spoils_the_whole_product(bad: float) -> None:
    x, weight = randn(5, 32, seed=0), randn(16, 32, seed=1)
    x[2, 3] = bad
    assert not fp8_linear(x, weight, dtype=torch.bfloat16).isfinite().any()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 16, 16), (513, 64, 48), (33, 160, 32), (16, 16, 272)])
def test_equals_float64_products_of_the_rounded_operands(rows: int, inputs: int, outputs: int) -> None:
    x, weight = randn(rows, inputs, seed=0, dtype=torch.bfloat16), randn(outputs, inputs, seed=1)
    dy = randn(rows, outputs, seed=2, dtype=torch.bfloat16) * 1e-4
    got = run(x, weight, dy)
    rounded = [
        t8.double() * scale.double() for t8, scale in (quantize(x, E4M3), quantize(weight, E4M3), quantize(dy, E5M2))
    ]
    expected = exact_products(*rounded)
    assert [g.dtype for g in got] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for g, e, tolerance in zip(got, expected, (4e-3, 4e-3, 1e-5), strict=True):  # bfloat16 and float32 out
        assert relative_error(g, e) < tolerance


@pytest.mark.parametrize("shape", [(1, 64), (3, 171, 64), (2, 7, 64)])
def test_is_as_near_to_the_exact_product_as_three_and_two_bits_allow(shape: tuple[int, ...]) -> None:
    """A number with 3 bits of fraction is off by 2.6 % (root mean square, normal numbers), one with 2 bits by 5.3 %."""
    x, weight = randn(*shape, seed=3, dtype=torch.bfloat16), randn(48, 64, seed=4)
    dy = randn(*shape[:-1], 48, seed=5, dtype=torch.bfloat16)
    exact = exact_products(x, weight, dy)
    got = run(x, weight, dy)
    assert got[0].shape == (*shape[:-1], 48)
    assert got[1].shape == shape
    errors = [relative_error(g.reshape(e.shape), e) for g, e in zip(got, exact, strict=True)]
    in_bf16 = relative_error(torch.nn.functional.linear(x, weight.bfloat16()).reshape(exact[0].shape), exact[0])
    assert in_bf16 < 0.005
    for error, bound in zip(errors, (0.05, 0.08, 0.08), strict=True):
        assert 0.01 < error < bound


def test_a_gradient_that_is_an_expanded_view_is_taken() -> None:
    x, weight = randn(17, 32, seed=0).requires_grad_(), randn(16, 32, seed=1).requires_grad_()
    fp8_linear(x, weight, dtype=torch.float32).sum().backward()
    assert x.grad is not None
    assert relative_error(x.grad, weight.detach().sum(0).expand(17, 32)) < 0.1


def test_only_what_is_asked_for_is_differentiated() -> None:
    x, weight = randn(8, 32, seed=0), randn(16, 32, seed=1).requires_grad_()
    fp8_linear(x, weight, dtype=torch.float32).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_transposed_pads_the_sum_with_zeros() -> None:
    x8 = randn(5, 3, seed=0).to(E5M2)
    out = transposed(x8, pad=True)
    assert out.shape == (3, 16)
    assert out.is_contiguous()
    assert torch.equal(out[:, :5].float(), x8.float().T)
    assert out[:, 5:].float().abs().max() == 0
    assert torch.equal(transposed(x8).float(), x8.float().T)


@pytest.mark.parametrize("rows", [1, 15, 16, 513])
def test_layouts_are_those_that_cuda_demands(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own rules, which it applies to tensors that exist in shape only; here it is told that they are CUDA's."""
    monkeypatch.setattr(torch._meta_registrations, "device_hint", lambda tensor: "cuda")
    x = torch.empty(rows, 64, dtype=torch.bfloat16, device="meta")
    dy = torch.empty(rows, 48, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(48, 64, device="meta")
    assert [t.shape for t in run(x, weight, dy)] == [(rows, 48), (rows, 64), (48, 64)]
    one, wise = torch.ones((), device="meta"), torch.nn.functional.ScalingType.TensorWise
    for shape, message in (((48, 56), "divisible by 16"), ((64, 48), "col_major")):
        a8, b8 = torch.empty(rows, shape[1], dtype=E4M3, device="meta"), torch.empty(shape, dtype=E4M3, device="meta")
        with pytest.raises(RuntimeError, match=message):
            torch.nn.functional.scaled_mm(a8, b8.t() if shape[0] == 48 else b8.t().contiguous(), one, wise, one, wise)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_as_one_graph_equals_eager() -> None:
    x, weight, dy = randn(3, 11, 64, seed=0), randn(48, 64, seed=1), randn(3, 11, 48, seed=2, dtype=torch.bfloat16)
    eager = run(x, weight, dy)
    compiled = run(x, weight, dy, apply=torch.compile(fp8_linear, fullgraph=True, dynamic=False))
    for a, b in zip(compiled, eager, strict=True):
        assert relative_error(a, b) < 1e-3


def test_a_switched_model_keeps_names_and_parameters() -> None:
    model = build_gpt(CONFIG, seed=0, compute_dtype=torch.bfloat16)
    before = dict(model.named_parameters())
    layers = use_fp8(model)
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    matrices = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert layers.switched == tuple(f"transformer.h.{i}.{m}" for i in range(2) for m in matrices)
    assert all(isinstance(model.get_submodule(name), Fp8Linear) for name in layers.switched)
    assert layers.kept["lm_head"] == "outside the blocks"
    assert layers.kept["transformer.h.1.attn.value_gate"] == "a side is no multiple of 16"
    assert layers.note() == (
        "fp8: 12 of 14 matrices (1 not: a side is no multiple of 16; 1 not: outside the blocks)"
    )  # fmt: skip
    assert use_fp8(model).switched == ()


def test_matrices_that_are_too_small_stay() -> None:
    layers = use_fp8(build_gpt(GPTConfig(97, 1, 2, 1, 96, 8), seed=0))
    assert layers.switched == ()
    assert layers.kept["transformer.h.0.attn.c_k"] == "a side below 128 is too small to gain"


def test_in_eval_mode_a_switched_model_is_the_old_one() -> None:
    model = build_gpt(CONFIG, seed=0, compute_dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(weight.numel()))
    ids = torch.arange(2 * 24).view(2, 24)
    plain = model.eval()(ids)
    use_fp8(model)
    assert torch.equal(model(ids), plain)
    assert not torch.equal(model.train()(ids), plain)


def test_a_trunk_is_one_graph_forward_and_backward_as_near_to_float32_as_the_eager_one() -> None:
    """Traced as a compiler would, and run without one: on a CPU fp8 is refused, so nobody compiles it there."""
    config = replace(CONFIG, n_layer=1)
    ids = torch.randint(0, 97, (3, 23), generator=torch.Generator().manual_seed(3))
    hidden = {}
    for name, dtype in (("exact", torch.float32), ("eager", torch.bfloat16), ("traced", torch.bfloat16)):
        model = build_gpt(config, seed=0, compute_dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if key.startswith("transformer.h."):
                    weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
        if name != "exact":
            use_fp8(model)
        trunk = model.trunk
        if name == "traced":
            trunk = torch.compile(trunk, fullgraph=True, dynamic=False, backend="aot_eager")
        hidden[name] = trunk(model.embed(ids))
        hidden[name].sum().backward()
        assert model.get_parameter("transformer.h.0.mlp.c_fc.weight").grad is not None
    errors = [relative_error(hidden[name].detach(), hidden["exact"].detach()) for name in ("eager", "traced")]
    assert errors[0] < 0.1
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_it_learns_as_bf16_does() -> None:
    """15 steps on one batch: the loss falls from ln(97) = 4.57 to where it falls in bf16."""
    ids = torch.randint(0, 97, (4, 25), generator=torch.Generator().manual_seed(0))
    losses = []
    for switch in (False, True):
        model = build_gpt(CONFIG, seed=0, compute_dtype=torch.bfloat16)
        if switch:
            assert use_fp8(model).switched
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(15):
            loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.5
    assert abs(losses[1] - losses[0]) < 0.15 * losses[0]


def refused(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fp8(device, dtype)
    return str(caught.value)


def test_refused_where_the_hardware_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "device of type cpu has no 8-bit" in refused(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "NVIDIA A100 has no 8-bit floating-point products (compute capability 8.0)" in refused(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_fp8(CUDA, torch.bfloat16)
    assert "must be in bf16" in refused(CUDA, torch.float32)
    monkeypatch.setattr(torch, "version", types.SimpleNamespace(hip="6.4"))
    assert "AMD" in refused(CUDA)


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_FP8_GPU, reason="needs an NVIDIA GPU with compute capability 8.9 or above")
@pytest.mark.parametrize("rows", [1, 513])
def test_on_a_gpu_it_equals_the_cpu(rows: int) -> None:
    x, weight = randn(rows, 256, seed=0, dtype=torch.bfloat16), randn(128, 256, seed=1)
    dy = randn(rows, 128, seed=2, dtype=torch.bfloat16)
    for got, expected in zip(run(x.cuda(), weight.cuda(), dy.cuda()), run(x, weight, dy), strict=True):
        # Hopper's fast sums have 14 bits.
        assert relative_error(got.cpu(), expected) < 5e-3
