"""Claims about choosing ids row by row: shares follow the probabilities written out in numpy, each rule holds at its edges,
a row's id does not depend on the others, and a seed's numbers are the same however many are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.infer.row_sampling import Choice, check_finite, choose, numbers_of_seed


def expected_shares(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    if top_k:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    if top_p is not None:
        reached = np.cumsum(probs[order]) - probs[order]
        probs[order[reached >= top_p]] = 0
    return probs / probs.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (1.0, 4, None),
        (2.0, 4, 0.6),
        (1.0, None, 0.7),
        (1.0, 0, 1.0),
        (1.0, 500, 0.3),
    ],
)
def test_shares_are_the_probabilities(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    num = 20_000
    # Evenly spaced numbers: each id is chosen as often as its probability says, but for one at each end.
    choices = [Choice(temperature, top_k, top_p, (i + 0.5) / num) for i in range(num)]
    ids = choose(logits_V.expand(num, -1), choices)
    shares = np.bincount(ids.numpy(), minlength=12) / num
    expected = expected_shares(logits_V.double().numpy(), temperature, top_k, top_p)
    assert np.abs(shares - expected).max() < 3 / num
    assert (shares[expected == 0] == 0).all()


def test_a_rows_id_does_not_depend_on_the_other_rows() -> None:
    draw = np.random.default_rng(0)
    logits_BV = torch.from_numpy(draw.normal(size=(40, 50))).float()
    rules = [(0.0, None, None), (1.0, None, None), (0.7, 5, None), (0.7, 9, 0.8), (1.3, None, 0.5)]
    choices = [Choice(*rules[draw.integers(5)], number=draw.random()) for _ in range(40)]
    together = choose(logits_BV, choices).tolist()
    assert together == [int(choose(logits_BV[i : i + 1], [choice])) for i, choice in enumerate(choices)]
    greedy = [i for i, choice in enumerate(choices) if choice.temperature == 0]
    assert [together[i] for i in greedy] == logits_BV[greedy].argmax(-1).tolist()


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.9)])
def test_numbers_at_the_ends_choose_ids_that_can_be(number: float, top_k: int | None, top_p: float | None) -> None:
    logits_V = torch.full((1000,), -1e9)
    logits_V[[400, 500, 600]] = torch.tensor([0.0, 1.0, 0.5])
    assert int(choose(logits_V[None], [Choice(1.0, top_k, top_p, number)])) in (400, 500, 600)


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    assert int(choose(torch.tensor([[1.0, 3.0, 2.0]]), [Choice(1e-9, None, None, 0.999)])) == 1


def test_a_seeds_numbers_do_not_depend_on_how_many_are_drawn() -> None:
    many = numbers_of_seed(7, 1000)
    for num in (1, 2, 15, 16, 17, 999):
        assert numbers_of_seed(7, num) == many[:num]
    assert numbers_of_seed(8, 5) != many[:5]
    assert 0 <= min(many) < 0.05 < 0.95 < max(many) < 1
    assert abs(np.mean(many) - 0.5) < 0.04


def test_what_is_not_finite_is_refused() -> None:
    check_finite(torch.tensor([1.0, -5.0]))
    for wrong in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ConfigError, match="not finite"):
            check_finite(torch.tensor([1.0, wrong]))
