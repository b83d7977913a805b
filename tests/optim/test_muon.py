"""Orthogonalization against SVD, coefficients against a minimax solver, the whole rule against torch.optim.Muon."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from firstlight.optim import muon

# Where five polynomials of arXiv 2505.16932 send singular values in [1e-3, 1].
BAND = (0.8764, 1.1236)


def with_singular_values(values, rows, columns, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    U, _ = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(columns, k, generator=generator, dtype=torch.float64))
    return (U * torch.tensor(values, dtype=torch.float64)) @ V.T, U @ V.T


def best_quintics(lower, num, cushion=0.02407327424182761):
    """Odd quintics closest to 1 on the interval that the previous ones leave, by exchange of four points.

    Independent of the code under test: the minimax problem of arXiv 2505.16932, section 3, with its cushion.
    """
    upper, found = 1.0, []
    for _ in range(num):
        left = max(lower, cushion * upper)
        q, r = (3 * left + upper) / 4, (left + 3 * upper) / 4
        for _ in range(100):
            points = np.array([left, q, r, upper])
            system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
            a, b, c, _error = np.linalg.solve(system, np.ones(4))
            root = np.sqrt(9 * b * b - 20 * a * c)
            q, r = np.sqrt((-3 * b - root) / (10 * c)), np.sqrt((-3 * b + root) / (10 * c))
        recentre = 2 / (np.polyval([c, 0, b, 0, a, 0], lower) + np.polyval([c, 0, b, 0, a, 0], upper))
        if left > lower:
            a, b, c = a * recentre, b * recentre, c * recentre
        found.append((a, b, c))
        lower = np.polyval([c, 0, b, 0, a, 0], lower)
        upper = 2 - lower
    return found


def test_coefficients_solve_the_papers_minimax_problem():
    for ours, solved in zip(muon.POLAR_EXPRESS, best_quintics(1e-3, 5), strict=True):
        assert ours == pytest.approx(solved, rel=1e-9)


def test_four_polynomials_solve_it_for_three_thousandths_and_have_their_band():
    solved = best_quintics(3e-3, 4)
    for ours, expected in zip(muon.POLAR_EXPRESS_4, solved, strict=True):
        assert ours == pytest.approx(expected, rel=1e-9)
    values = np.geomspace(3e-3, 1.0, 10001)
    for a, b, c in solved:
        values = a * values + b * values**3 + c * values**5
    assert values.min() == pytest.approx(0.793, abs=1e-3)
    assert values.max() == pytest.approx(1.207, abs=1e-3)


@pytest.mark.parametrize("coefficients", [muon.POLAR_EXPRESS, muon.POLAR_EXPRESS_4])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 64), (64, 16), (5, 33)])
def test_matrices_get_the_polynomials_of_their_singular_values(rows, columns, coefficients):
    values = np.geomspace(2e-3, 1.0, min(rows, columns))
    G, _ = with_singular_values(values, rows, columns)
    ortho = muon.orthogonalize(G[None], dtype=torch.float64, coefficients=coefficients, safety=False)[0]
    expected = values / np.linalg.norm(values)
    for a, b, c in coefficients:
        expected = a * expected + b * expected**3 + c * expected**5
    found = torch.linalg.svdvals(ortho)
    assert found.numpy() == pytest.approx(np.sort(expected)[::-1], rel=1e-9)
    G_, _ = with_singular_values(expected, rows, columns)
    assert torch.allclose(ortho, G_, atol=1e-9), "the singular vectors stay"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("coefficients", [muon.POLAR_EXPRESS, muon.POLAR_EXPRESS_4])
def test_gram_matrix_loses_little_in_bfloat16(coefficients, seed):
    # Singular values down to 1e-3 of the largest: the Gram matrix has them squared, below bfloat16's steps.
    G, _ = with_singular_values(np.geomspace(1e-3, 1.0, 64), 64, 256, seed=seed)
    G = G[None] / (muon.SAFETY_FACTOR * torch.linalg.matrix_norm(G))
    exact = muon._iterate(G, muon.safe_coefficients(coefficients))
    ours = muon.orthogonalize(G, coefficients=coefficients)
    assert ours.dtype == torch.bfloat16
    # Without the Gram matrix it is 0.10 for five polynomials and less for four.
    assert (ours.double() - exact).norm() < 0.13 * exact.norm()
    assert torch.linalg.matrix_norm(ours.double(), ord=2) < 1.4


@pytest.mark.parametrize(("m", "n"), [(8, 8), (8, 32), (12, 17)])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_products_are_counted_as_torch_counts_them(m, n, num):
    X = torch.randn(1, m, n, dtype=torch.float64)
    for iterate, count in ((muon._iterate, muon.direct_products), (muon._iterate_gram, muon.gram_products)):
        with FlopCounterMode(display=False) as counter:
            iterate(X, muon.POLAR_EXPRESS_4[:num])
        assert counter.get_total_flops() == 2 * count(m, n, num)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 64), (64, 16), (5, 33)])
def test_polar_express_puts_singular_values_near_one(rows, columns):
    values = np.geomspace(2e-3, 1.0, min(rows, columns))
    G, _ = with_singular_values(values, rows, columns)
    ortho = muon.orthogonalize(G[None].float(), dtype=torch.float32)[0]
    found = torch.linalg.svdvals(ortho.double())
    assert found.min() > BAND[0] - 1e-3
    assert found.max() < BAND[1] + 1e-3


def test_published_band_follows_from_the_minimax_problem():
    lower = 1e-3
    for a, b, c in best_quintics(1e-3, 5):
        lower = a * lower + b * lower**3 + c * lower**5
    assert (lower, 2 - lower) == pytest.approx(BAND, abs=1e-4)


def test_classic_quintic_puts_singular_values_in_its_band():
    values = np.linspace(0.05, 1.0, 32)
    G, _ = with_singular_values(values, 32, 48)
    ortho = muon.orthogonalize(G[None].float(), dtype=torch.float32, coefficients=muon.CLASSIC_QUINTIC, safety=False)
    found = torch.linalg.svdvals(ortho[0].double())
    assert found.min() > 0.65
    assert found.max() < 1.25


def test_bfloat16_stays_in_a_band_around_one():
    generator = torch.Generator().manual_seed(3)
    G = torch.randn(6, 64, 256, generator=generator)
    ortho = muon.orthogonalize(G, dtype=torch.bfloat16)
    assert ortho.dtype is torch.bfloat16
    found = torch.linalg.svdvals(ortho.double())
    assert found.min() > BAND[0] - 0.02
    assert found.max() < BAND[1] + 0.02


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (12, 40), (40, 12)])
def test_result_is_the_nearest_orthogonal_matrix(rows, columns):
    G, polar = with_singular_values(np.linspace(0.2, 1.0, min(rows, columns)), rows, columns, seed=5)
    ortho = muon.orthogonalize(G[None].float(), dtype=torch.float32)[0].double()
    assert torch.linalg.matrix_norm(ortho - polar, ord=2) < BAND[1] - 1 + 1e-3
    assert torch.nn.functional.cosine_similarity(ortho.flatten(), polar.flatten(), dim=0) > 0.995


def test_each_matrix_of_a_stack_is_treated_alone():
    generator = torch.Generator().manual_seed(4)
    G = torch.randn(5, 24, 16, generator=generator) * torch.tensor([1e-6, 1.0, 1e4, 3.0, 0.1])[:, None, None]
    together = muon.orthogonalize(G, dtype=torch.float32)
    for i in range(5):
        alone = muon.orthogonalize(G[i : i + 1], dtype=torch.float32)[0]
        assert torch.allclose(together[i], alone, atol=1e-4)


def test_direction_does_not_depend_on_the_gradients_scale():
    G = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(6))
    for scale in (2.0**-60, 2.0**20):
        assert torch.equal(muon.orthogonalize(G * scale), muon.orthogonalize(G))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta2", [0.0, 0.95])
def test_zero_gradient_stays_zero(dtype, beta2):
    grads = torch.zeros(3, 8, 32)
    second_moment = torch.zeros(muon.second_moment_shape(3, 8, 32)) if beta2 else None
    muon.muon_direction_(grads, torch.zeros_like(grads), second_moment, momentum=0.95, beta2=beta2, dtype=dtype)
    assert torch.equal(grads, torch.zeros(3, 8, 32))


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_equals_torch_optim_muon_over_10_steps(shape):
    torch.manual_seed(7)
    start = torch.randn(shape)
    ours = start.clone()
    theirs = torch.nn.Parameter(ours.clone())
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9)
    momentum = torch.zeros(1, *shape)
    for _ in range(10):
        grad = torch.randn(shape)
        theirs.grad = grad.clone()
        reference.step()
        update = grad[None].clone()
        muon.muon_direction_(
            update,
            momentum,
            None,
            momentum=0.9,
            beta2=0.0,
            dtype=torch.bfloat16,
            coefficients=muon.CLASSIC_QUINTIC,
            safety=False,
        )
        muon.apply_updates_([ours], [update[0]], lr=0.02, weight_decay=0.1, cautious=False)
    # Both round the products to bfloat16, in different orders: 2 % of the way that the weights went.
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


def test_worked_example_of_the_documentation():
    # docs/optimizer.md: G = [[3, 0], [4, 5]] has singular values 3 sqrt 5 and sqrt 5, and polar factor [[2, -1], [1, 2]] / sqrt 5.
    G = torch.tensor([[[3.0, 0.0], [4.0, 5.0]]])
    assert torch.linalg.svdvals(G)[0].tolist() == pytest.approx([45**0.5, 5**0.5])
    polar = torch.tensor([[2.0, -1.0], [1.0, 2.0]]) / 5**0.5
    ortho = muon.orthogonalize(G, dtype=torch.float32)[0]
    assert ortho.flatten().tolist() == pytest.approx([0.819, -0.388, 0.445, 0.847], abs=1e-3)
    assert torch.linalg.matrix_norm(ortho - polar, ord=2) < BAND[1] - 1


@pytest.mark.parametrize(("rows", "columns", "dim"), [(64, 16, 1), (16, 64, 0)])
def test_variance_reduction_evens_out_neurons_and_keeps_the_norm(rows, columns, dim):
    generator = torch.Generator().manual_seed(8)
    G = torch.randn(1, rows, columns, generator=generator)
    G[0].mul_(torch.linspace(0.1, 3, rows)[:, None] if dim == 1 else torch.linspace(0.1, 3, columns)[None])
    plain = muon.orthogonalize(G, dtype=torch.float32)
    even = plain.clone()
    muon.equalize_neurons_(even, torch.zeros(muon.second_moment_shape(1, rows, columns)), beta2=0.95)
    lengths_before = plain[0].norm(dim=dim)
    lengths = even[0].norm(dim=dim)
    assert lengths_before.max() / lengths_before.min() > 2
    assert lengths.max() / lengths.min() < 1.001
    assert even.norm() == pytest.approx(plain.norm().item(), rel=1e-5)


def test_second_moment_by_hand_over_two_steps():
    memory = torch.zeros(1, 2, 1)
    first = torch.tensor([[[3.0], [4.0]]])
    muon.equalize_neurons_(first, memory, beta2=0.75)
    assert memory.flatten().tolist() == pytest.approx([9 / 4, 16 / 4])
    assert first.flatten().tolist() == pytest.approx([5 / 2**0.5] * 2, rel=1e-5)
    second = torch.tensor([[[0.0], [2.0]]])
    muon.equalize_neurons_(second, memory, beta2=0.75)
    assert memory.flatten().tolist() == pytest.approx([0.75 * 9 / 4, 0.75 * 4 + 0.25 * 4])
    assert second.flatten().tolist() == pytest.approx([0.0, 2.0])


def test_cautious_decay_touches_only_weights_that_the_update_shrinks():
    w = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])
    update = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.5])
    muon.apply_updates_([w], [update], lr=0.1, weight_decay=0.2, cautious=True)
    by_hand = [1.0 * 0.98 - 0.05, -1.0 - 0.05, 2.0 + 0.05, -2.0 * 0.98 + 0.05, -0.05]
    assert w.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_plain_decay_by_hand():
    w = torch.tensor([1.0, -1.0])
    muon.apply_updates_([w], [torch.tensor([0.5, 0.5])], lr=0.1, weight_decay=0.2, cautious=False)
    assert w.tolist() == pytest.approx([0.98 - 0.05, -0.98 - 0.05], abs=1e-6)


def test_tall_matrices_get_the_shape_factor():
    G = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(9))
    muon.muon_direction_(G, torch.zeros_like(G), None, momentum=0.0, beta2=0.0, dtype=torch.float32)
    found = torch.linalg.svdvals(G)
    assert found.min() > 2 * BAND[0] - 1e-3
    assert found.max() < 2 * BAND[1] + 1e-3
