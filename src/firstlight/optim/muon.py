"""Muon: momentum, then every matrix's update replaced by the nearest orthogonal matrix.

Shapes: K matrices of one shape in a stack, M rows (outputs), N columns (inputs).

Sources: Muon, https://kellerjordan.github.io/posts/muon/ . Polar Express, arXiv 2505.16932. NorMuon, arXiv 2510.05491.
Cautious weight decay, arXiv 2510.12402. Iterating on the Gram matrix: Gram Newton-Schulz, Zhang, Amsel, Chen & Dao, 2026.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

Coefficients = tuple[tuple[float, float, float], ...]

# The polynomials of Algorithm 1 in arXiv 2505.16932 for singular values in [1e-3, 1]: each is the best quintic for the
# interval that the previous one leaves. `tests/optim/test_muon.py` recomputes them.
POLAR_EXPRESS: Coefficients = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# The same for singular values in [3e-3, 1] and four polynomials: the band is [0.793, 1.207]. Over 244 steps at depth 4 the score
# was that of five, at four fifths of the work; three cost 0.013 bits a byte (lab/LOG.md).
POLAR_EXPRESS_4: Coefficients = (
    (8.219101105846393, -23.40195672053617, 17.1581989432209),
    (4.004876059148972, -2.9223467745083926, 0.5491185267263445),
    (3.5235614361928356, -2.6398035290594546, 0.5272128341911066),
    (2.5115271663527303, -1.8524483560830067, 0.4388326355802108),
)
# Muon's first polynomial, the same at every iteration (torch.optim.Muon's default).
CLASSIC_QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5

# Rounding in bfloat16 can push a singular value above the end of its interval, where the polynomials explode; the paper
# shrinks the argument of all but the last one by this factor.
SAFETY_FACTOR = 1.01
TINY = 1e-7
# Rounding in the Gram matrix grows with the square of each polynomial's slope at 0. Up to these products of squares bfloat16
# keeps the smallest singular values apart from it: the error of the result stays near that of the direct form, where at 1,114
# some singular values came out at 3 instead of 1. The first Gram matrix bears more, because its eigenvalues add up to 1.
GRAM_LARGEST_GROWTH = 900.0
GRAM_LARGEST_LATER_GROWTH = 30.0


def safe_coefficients(coefficients: Coefficients) -> Coefficients:
    """The polynomials with their argument divided by SAFETY_FACTOR, all but the last."""
    s = SAFETY_FACTOR
    return tuple((a / s, b / s**3, c / s**5) for a, b, c in coefficients[:-1]) + coefficients[-1:]


def needs_safety(coefficients: Coefficients) -> bool:
    """Whether `orthogonalize` should shrink the argument: for all but Muon's first polynomial, which bears values above 1."""
    return coefficients is not CLASSIC_QUINTIC


def orthogonalize(
    updates_KMN: torch.Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
    coefficients: Coefficients = POLAR_EXPRESS,
    safety: bool = True,
) -> torch.Tensor:
    """Nearly orthogonal matrices with the singular vectors of ``updates_KMN``: U S V^T becomes about U V^T.

    dtype: of the matrix products and of the result. bfloat16 where the hardware multiplies it fast: the polynomials damp
    their own rounding errors. A zero matrix stays zero.

    Polar Express sends every singular value above 1e-3 of the matrix's Frobenius norm into [0.876, 1.124]; smaller ones
    are raised by at most a factor of about 1000. The classic quintic's band is [0.68, 1.13] for values above 1e-2.
    """
    norms_K11 = torch.linalg.matrix_norm(updates_KMN, keepdim=True)
    if safety:
        coefficients = safe_coefficients(coefficients)
        norms_K11 = norms_K11 * SAFETY_FACTOR
    X = (updates_KMN / norms_K11.clamp_min(TINY**3)).to(dtype)
    tall = X.size(-2) > X.size(-1)
    if tall:
        # The Gram matrix below is then the smaller of the two. A copy: strided bfloat16 products are slow on CPUs.
        X = X.mT.contiguous()
    for cycle in gram_cycles(coefficients):
        if gram_products(X.size(-2), X.size(-1), len(cycle)) < direct_products(X.size(-2), X.size(-1), len(cycle)):
            X = _iterate_gram(X, cycle)
        else:
            X = _iterate(X, cycle)
    return X.mT if tall else X


def gram_cycles(coefficients: Coefficients) -> list[Coefficients]:
    """The polynomials in groups that may share one Gram matrix: in front of each but a group's first, growth is bounded.

    >>> [len(cycle) for cycle in gram_cycles(POLAR_EXPRESS)], [len(cycle) for cycle in gram_cycles(POLAR_EXPRESS_4)]
    ([2, 2, 1], [2, 2])
    """
    cycles: list[Coefficients] = []
    growth = math.inf
    for polynomial in coefficients:
        if growth > (GRAM_LARGEST_GROWTH if len(cycles) == 1 else GRAM_LARGEST_LATER_GROWTH):
            cycles.append(())
            growth = 1.0
        cycles[-1] += (polynomial,)
        growth *= polynomial[0] ** 2
    return cycles


def direct_products(m: int, n: int, num_polynomials: int) -> int:
    """Multiply-adds of `_iterate` on an (m, n) matrix, m <= n: X X^T, A A and B X for each polynomial."""
    return num_polynomials * (2 * m * m * n + m**3)


def gram_products(m: int, n: int, num_polynomials: int) -> int:
    """Multiply-adds of `_iterate_gram`: two with X in all, and for each polynomial G G, P G P and P Q (first and last less).

    >>> gram_products(256, 1024, 2) / direct_products(256, 1024, 2), gram_products(256, 256, 2) / direct_products(256, 256, 2)
    (0.7222222222222222, 1.1666666666666667)
    """
    return 2 * m * m * n + (4 * num_polynomials - 3) * m**3


def _iterate(X_KMN: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """X <- (a + b A + c A^2) X with A = X X^T, for each polynomial in turn."""
    for a, b, c in coefficients:
        A_KMM = torch.bmm(X_KMN, X_KMN.mT)
        B_KMM = torch.baddbmm(A_KMM, A_KMM, A_KMM, beta=b, alpha=c)
        X_KMN = torch.baddbmm(X_KMN, B_KMM, X_KMN, beta=a)
    return X_KMN


def _iterate_gram(X_KMN: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """The same as `_iterate` up to rounding, without touching X in between.

    Each factor P = a + b G + c G^2 is a polynomial of G = X X^T and commutes with it, so (P X)(P X)^T = P G P, and only
    the product Q of all factors is multiplied with X, once.
    """
    G_KMM = torch.bmm(X_KMN, X_KMN.mT)
    Q_KMM = None
    for i, (a, b, c) in enumerate(coefficients):
        P_KMM = torch.baddbmm(G_KMM, G_KMM, G_KMM, beta=b, alpha=c)
        P_KMM.diagonal(dim1=-2, dim2=-1).add_(a)
        Q_KMM = P_KMM if Q_KMM is None else torch.bmm(P_KMM, Q_KMM)
        if i < len(coefficients) - 1:
            G_KMM = torch.bmm(torch.bmm(P_KMM, G_KMM), P_KMM)
    assert Q_KMM is not None
    return torch.bmm(Q_KMM, X_KMN)


def equalize_neurons_(updates_KMN: torch.Tensor, second_moment: torch.Tensor, *, beta2: float) -> None:
    """Divide each neuron's update by the root of its running mean square, keeping every matrix's norm (NorMuon, in place).

    Orthogonal rows (or columns, whichever are fewer) have length 1 already. Along the other side lengths differ, so a
    few neurons would move most; ``second_moment``, (K, M, 1) for M >= N and (K, 1, N) otherwise, remembers their mean
    squares. The paper treats rows only; for a wide matrix those are equal already, so we take the columns there.

    Keeping the norm also cancels the bias of a memory that starts at zero.
    """
    dim = -1 if second_moment.size(-1) == 1 else -2
    norms_K11 = torch.linalg.matrix_norm(updates_KMN, keepdim=True)
    lengths = torch.linalg.vector_norm(updates_KMN, dim=dim, keepdim=True)
    second_moment.lerp_(lengths.square_().div_(updates_KMN.size(dim)), 1 - beta2)
    updates_KMN.div_(second_moment.sqrt().add_(1e-8))
    updates_KMN.mul_(norms_K11 / torch.linalg.matrix_norm(updates_KMN, keepdim=True).clamp_min(TINY))


def second_moment_shape(num: int, rows: int, columns: int) -> tuple[int, int, int]:
    """Shape of NorMuon's memory for a stack of ``num`` matrices: one value per neuron of the longer side."""
    return (num, rows, 1) if rows >= columns else (num, 1, columns)


def muon_direction_(
    grads_KMN: torch.Tensor,
    momentum_KMN: torch.Tensor,
    second_moment: torch.Tensor | None,
    *,
    momentum: float | torch.Tensor,
    beta2: float,
    dtype: torch.dtype,
    coefficients: Coefficients = POLAR_EXPRESS,
    safety: bool = True,
) -> None:
    """Replace gradients by Muon's update direction, in place; the weights then move by minus lr times it.

    Nesterov momentum as an average: m <- mu m + (1 - mu) g, then the update looks ahead with mu m + (1 - mu) g. The
    shape factor max(1, M / N)^0.5 gives an output the same expected change whatever the matrix's shape.

    momentum: a float, or a 0-d tensor where the function is compiled (a changing float would recompile it).
    """
    momentum_KMN.lerp_(grads_KMN, 1 - momentum)
    grads_KMN.lerp_(momentum_KMN, momentum)
    grads_KMN.copy_(orthogonalize(grads_KMN, dtype=dtype, coefficients=coefficients, safety=safety))
    if second_moment is not None:
        equalize_neurons_(grads_KMN, second_moment, beta2=beta2)
    rows, columns = grads_KMN.shape[-2:]
    if rows > columns:
        grads_KMN.mul_((rows / columns) ** 0.5)


@lru_cache(maxsize=1)
def compiled_muon_direction_() -> Callable[..., None]:
    """`muon_direction_` through torch.compile, made at the first call."""
    return torch.compile(muon_direction_, dynamic=False)


def apply_updates_(
    parameters: list[torch.Tensor], updates: list[torch.Tensor], *, lr: float, weight_decay: float, cautious: bool
) -> None:
    """w <- w - lr * weight_decay * w - lr * update, in place; cautious: decay only where update and w agree in sign.

    Where they agree the update shrinks the weight too, so decay never works against the gradient (arXiv 2510.12402).
    """
    if weight_decay and cautious:
        for parameter, update in zip(parameters, updates, strict=True):
            shrinks = (update * parameter) > 0
            parameter.sub_(parameter * shrinks, alpha=lr * weight_decay)
    elif weight_decay:
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_add_(parameters, updates, alpha=-lr)
