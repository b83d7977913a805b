"""Differences of bits per byte: against bootstraps, against the truth of simulated data, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstlight.errors import DataError
from firstlight.eval.paired import paired_difference, unpaired_difference, verdict, what_is_in_the_error

LN2 = math.log(2)


def simulated(rng, *, seeds=(3, 3), n=300, effect=0.0, seed=0.004, document=0.0, both=0.05):
    """Nats of two settings on documents of very different lengths; the settings are effect apart (in bits per byte)."""
    size = rng.lognormal(7, 1, n)
    hardness = rng.normal(0, 0.3, n)
    nats = []
    for i, k in enumerate(seeds):
        own = hardness + rng.normal(0, document, n)
        bits = 1.6 - effect * i + rng.normal(0, seed, (k, 1)) + own + rng.normal(0, both, (k, n))
        nats.append(bits * size * LN2)
    return *nats, size


def score(nats_KN, size):
    return float(nats_KN.sum() / LN2 / size.sum() / len(nats_KN))


def test_the_documents_part_is_what_a_bootstrap_over_documents_gives():
    rng = np.random.default_rng(1)
    a, b, size = simulated(rng, seeds=(1, 1), document=0.05)
    found = paired_difference(a, b, size)
    draws = []
    for _ in range(2000):
        i = rng.integers(0, len(size), len(size))
        draws.append(score(a[:, i], size[i]) - score(b[:, i], size[i]))
    assert found.difference == pytest.approx(score(a, size) - score(b, size), abs=1e-12)
    assert found.stderr == pytest.approx(np.std(draws), rel=0.1)
    # In pairs: hard documents are hard for both, so the error is several times smaller.
    assert found.unpaired_stderr > 2.5 * found.stderr


def test_the_whole_error_is_what_a_bootstrap_over_documents_and_seeds_gives():
    rng = np.random.default_rng(2)
    a, b, size = simulated(rng, seeds=(6, 9), seed=0.01, document=0.1, both=0.02)
    found = paired_difference(a, b, size)
    draws = []
    for _ in range(2000):
        i = rng.integers(0, len(size), len(size))
        # K - 1 of K seeds: with K the bootstrap of a mean is too narrow by sqrt((K - 1) / K) (Rao and Wu 1988).
        j, k = (rng.integers(0, len(x), len(x) - 1) for x in (a, b))
        draws.append(score(a[j][:, i], size[i]) - score(b[k][:, i], size[i]))
    assert found.stderr == pytest.approx(np.std(draws), rel=0.1)
    assert found.stderr**2 == pytest.approx(found.documents_stderr**2 + found.seeds_stderr**2, rel=0.05)


@pytest.mark.parametrize(
    "noise",
    [{"seed": 0.004, "both": 0.05}, {"seed": 0.01, "document": 0.1}, {"seed": 0.02, "both": 0.01}],
    ids=["between identical settings", "all three", "seeds alone"],
)
def test_the_error_is_how_far_the_difference_is_off_and_the_interval_holds_the_truth(noise):
    rng = np.random.default_rng(3)
    found, variances = [], []
    for _ in range(400):
        a, b, size = simulated(rng, effect=0.02, **noise)
        found.append(paired_difference(a, b, size))
        # What was put in: a mean weighted by size of independent draws has its variance times sum s^2 / (sum s)^2.
        weight = np.sum(size**2) / np.sum(size) ** 2
        seeds = noise.get("seed", 0.004) ** 2 + weight * noise.get("both", 0.05) ** 2
        variances.append(2 / 3 * seeds + 2 * weight * noise.get("document", 0.0) ** 2)
    mean_square = np.mean([one.stderr**2 for one in found])
    # Never much too small; a little too large where seeds and documents add hardly anything of their own.
    assert 0.93 < math.sqrt(mean_square / np.mean(variances)) < 1.15
    covered = np.mean([one.low <= 0.02 <= one.high for one in found])
    assert 0.92 <= covered <= 0.995


def test_small_numbers_by_hand():
    # Two documents of 1 and 3 bytes, bits 4 and 6 against 2 and 6: (10 - 8) / 4 bpb; residuals 2 - 0.5, 0 - 1.5.
    nats_a, nats_b = np.array([[4.0, 6.0]]) * LN2, np.array([[2.0, 6.0]]) * LN2
    found = paired_difference(nats_a, nats_b, np.array([1, 3]))
    assert found.difference == pytest.approx(0.5)
    assert found.stderr == pytest.approx(math.sqrt(2 / 1 * (1.5**2 + 1.5**2)) / 4)
    assert found.df == pytest.approx(1)
    assert found.high == pytest.approx(0.5 + 12.7062 * 0.75, rel=1e-4)
    assert found.seeds_stderr is None
    # Seeds that differ by the same bits a byte on every document: variance of (1, 2, 3) is 1, of (1, 3) 2.
    size = np.array([1.0, 2.0, 5.0])
    a = np.outer([1, 2, 3], size) * LN2
    b = np.outer([1, 3], size) * LN2
    found = paired_difference(a, b, size)
    assert found.stderr == pytest.approx(math.sqrt(1 / 3 + 2 / 2))
    assert found.df == pytest.approx((1 / 3 + 1) ** 2 / ((1 / 3) ** 2 / 2 + 1**2 / 1))  # Welch (1947)
    assert found.documents_stderr == pytest.approx(0, abs=1e-12)


def test_one_seed_beside_several_is_taken_to_spread_as_they_do():
    size = np.array([1.0, 2.0, 5.0])
    found = paired_difference(np.outer([1, 2, 3], size) * LN2, size[None] * LN2, size)
    assert found.seed_noise == "from the other setting"
    assert found.stderr == pytest.approx(math.sqrt(1 / 3 + 1 / 1))
    assert found.df == pytest.approx(2)
    assert "taken to spread as the other's 3" in what_is_in_the_error(found)


def test_the_error_of_one_seed_each_says_what_it_leaves_out():
    rng = np.random.default_rng(4)
    found = paired_difference(*simulated(rng, seeds=(1, 1)))
    assert found.seed_noise == "not in it"
    words = what_is_in_the_error(found)
    assert words.startswith("one seed each: the error covers 300 documents alone (compared one by one)")
    assert "not known here" in words
    words = what_is_in_the_error(found, spread_elsewhere=("base", 0.01))
    assert "two seeds of base differ by 0.0141" in words


def test_scores_without_documents_are_compared_with_both_errors():
    found = unpaired_difference([1.50], [1.40], [0.03], [0.04], num_documents=100)
    assert (found.difference, found.stderr) == (pytest.approx(0.1), pytest.approx(0.05))
    assert not found.paired
    assert found.outcome == "b is better" if found.low > 0 else found.outcome == "no difference shown"
    # Seeds of a setting were scored on the same documents: 0.03 stays 0.03; the variance of (1.4, 1.5, 1.6) is 0.01.
    found = unpaired_difference([1.4, 1.5, 1.6], [1.4, 1.5, 1.6], [0.03] * 3, [0.04] * 3)
    assert found.stderr == pytest.approx(math.sqrt(0.03**2 + 0.04**2 + 2 * 0.01 / 3))


def test_verdicts_are_plain_sentences():
    def found(difference, stderr):
        size = np.array([1000.0, 1000.0] * 5000)
        noise = stderr * 100 * 1000 * np.resize([1, -1], 10_000)
        a = (difference * size + noise) * LN2
        return paired_difference(a[None], 0 * a[None], size)

    assert (
        verdict(found(0.012, 0.002), "A", "B") == "B is better by 0.0120 ± 0.0020 bpb (95 % interval 0.0081 to 0.0159)"
    )
    assert verdict(found(-0.012, 0.002), "A", "B").startswith(
        "A is better by 0.0120 ± 0.0020 bpb (95 % interval 0.0081"
    )
    assert verdict(found(0.001, 0.002), "A", "B") == (
        "no difference shown between A and B (0.0010 ± 0.0020 bpb; 95 % interval of A minus B: -0.0029 to 0.0049)"
    )
    assert "± 0.000020 bpb" in verdict(found(0.01, 0.00002), "A", "B")
    assert verdict(found(0.0, 0.0), "A", "B") == "no difference at all: A and B score every document the same"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="1 documents with 5 bytes"):
        paired_difference(np.ones((1, 1)), np.ones((1, 1)), np.array([5]))
    with pytest.raises(DataError, match="not finite on 1 documents"):
        paired_difference(np.array([[1.0, math.nan]]), np.ones((1, 2)), np.array([5, 5]))
