"""AdamW against the formula in float64 and against torch.optim.AdamW."""

from __future__ import annotations

import math

import pytest
import torch

from firstlight.optim.adamw import adamw_update_


def run(parameters, grads_by_step, **numbers):
    exp_avgs = [torch.zeros_like(p) for p in parameters]
    exp_avg_sqs = [torch.zeros_like(p) for p in parameters]
    for i, grads in enumerate(grads_by_step):
        steps = [torch.tensor(float(i)) for _ in parameters]
        adamw_update_(parameters, [g.clone() for g in grads], exp_avgs, exp_avg_sqs, steps, **numbers)
    return exp_avgs, exp_avg_sqs


def test_equals_the_formula_in_float64():
    torch.manual_seed(0)
    w = torch.randn(7, 5)
    grads = [torch.randn(7, 5) for _ in range(5)]
    lr, beta1, beta2, eps, decay = 0.01, 0.8, 0.95, 1e-8, 0.1
    expected, m, v = w.double(), 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        g = g.double()
        expected = expected - lr * decay * expected
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        expected = expected - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
    run([w], [[g] for g in grads], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    assert torch.allclose(w.double(), expected, atol=1e-6, rtol=0)


def test_epsilon_is_outside_the_bias_correction():
    # One step with g = 1e-9: m/(1-b1) = g and sqrt(v/(1-b2)) = |g|, so the step is lr * g / (|g| + eps).
    w = torch.zeros(3)
    run([w], [[torch.full((3,), 1e-9)]], lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    by_hand = -1e-9 / (1e-9 + 1e-8)
    assert w.tolist() == pytest.approx([by_hand] * 3, rel=1e-4)
    inside_the_correction = -1e-9 / (1e-9 + 1e-8 / math.sqrt(1 - 0.999))
    assert abs(w[0].item() / inside_the_correction - 1) > 1


def test_decay_comes_before_the_update():
    # After the update it would differ by lr * decay * update.
    w = torch.tensor([2.0])
    run([w], [[torch.tensor([3.0])]], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.5)
    assert w.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)


def test_equals_torch_optim_adamw_over_20_steps():
    torch.manual_seed(1)
    shapes = [(33, 7), (5,), ()]
    ours = [torch.randn(s) for s in shapes]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    grads = [[torch.randn(s) * 10.0 ** torch.randint(-6, 2, ()).item() for s in shapes] for _ in range(20)]
    run(ours, grads, lr=0.003, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs, lr=0.003, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1, foreach=False)
    for step_grads in grads:
        for parameter, grad in zip(theirs, step_grads, strict=True):
            parameter.grad = grad.clone()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b.detach(), atol=1e-6, rtol=1e-6)


def test_divisor_equals_dividing_the_gradient_first():
    torch.manual_seed(2)
    a, b = torch.randn(9), None
    b = a.clone()
    grad = torch.randn(9)
    numbers = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.0}
    run([a], [[grad / 8]], **numbers)
    run([b], [[grad]], grad_divisor=torch.tensor(8.0), **numbers)
    assert torch.equal(a, b)


def test_zero_gradient_leaves_an_undecayed_weight_alone():
    w = torch.tensor([1.5, -2.0])
    run([w], [[torch.zeros(2)]], lr=0.2, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    assert w.tolist() == [1.5, -2.0]
