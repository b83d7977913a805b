"""Claims: temperature 0 is argmax, filters keep exactly the ids that they should, frequencies are the probabilities."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.infer.sampling import sample

LOGITS_V = torch.tensor([0.1, 0.5, 0.15, 0.2, 0.05]).log()


def draws(num: int = 20000, **options: float) -> torch.Tensor:
    """Shares of the five ids among ``num`` independent rows."""
    ids = sample(LOGITS_V.expand(num, -1), generator=torch.Generator().manual_seed(0), **options)
    assert ids.shape == (num,)
    assert ids.dtype == torch.int64
    return torch.bincount(ids, minlength=5) / num


def test_frequencies_are_the_probabilities() -> None:
    # Four standard errors of a share of 0.5 among 20,000 are 0.014.
    assert (draws() - LOGITS_V.exp()).abs().max() < 0.014


def test_temperature_zero_takes_the_largest_without_a_generator() -> None:
    logits_BV = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits_BV, temperature=0.0), logits_BV.argmax(-1))


def test_temperature_sharpens_and_flattens() -> None:
    squared = LOGITS_V.exp() ** 2 / (LOGITS_V.exp() ** 2).sum()
    assert (draws(temperature=0.5) - squared).abs().max() < 0.014
    assert (draws(temperature=1e6) - 0.2).abs().max() < 0.014


def test_tiny_temperature_does_not_overflow() -> None:
    # 1e9 / 1e-30 is beyond float32.
    logits_BV = torch.tensor([[2e9, 5e9, -1e9]]).expand(20, -1)
    ids = sample(logits_BV, temperature=1e-30, generator=torch.Generator().manual_seed(0))
    assert ids.tolist() == [1] * 20


def test_top_k_keeps_the_k_largest() -> None:
    shares = draws(top_k=2)
    assert shares.nonzero()[:, 0].tolist() == [1, 3]
    assert shares[1].item() == pytest.approx(0.5 / 0.7, abs=0.014)
    assert draws(top_k=1)[1] == 1.0


@pytest.mark.parametrize("top_k", [0, None, 5, 500])
def test_top_k_of_zero_none_or_the_whole_vocabulary_is_no_filter(top_k: int | None) -> None:
    assert torch.equal(draws(top_k=top_k), draws())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [1]), (0.51, [1, 3]), (0.69, [1, 3]), (0.8, [1, 2, 3]), (0.0001, [1])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    assert draws(top_p=top_p).nonzero()[:, 0].tolist() == kept


@pytest.mark.parametrize("top_p", [1.0, None])
def test_top_p_of_one_or_none_is_no_filter(top_p: float | None) -> None:
    assert torch.equal(draws(top_p=top_p), draws())


def test_rows_are_drawn_independently() -> None:
    ids = sample(torch.zeros(64, 1000), generator=torch.Generator().manual_seed(0))
    assert ids.unique().numel() > 50


def test_same_generator_gives_the_same_ids_and_the_global_one_is_not_used() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draws(top_k=3, top_p=0.9), draws(top_k=3, top_p=0.9))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": -1}, "top_k -1 is negative"),
        ({"top_p": 0.0}, "top_p 0.0 is outside"),
        ({"top_p": 1.5}, "top_p 1.5 is outside"),
    ],
)
def test_values_without_meaning_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draws(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_are_named(temperature: float) -> None:
    with pytest.raises(ConfigError, match="not finite"):
        sample(torch.tensor([[0.0, float("nan")]]), temperature=temperature, generator=torch.Generator())
