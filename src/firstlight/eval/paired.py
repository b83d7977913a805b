"""The difference of two settings' bits per byte, with its standard error: in pairs, document by document, and over seeds.

**One model against another.** Document i has s_i bytes and costs model A a_i bits and model B b_i. Both scores are ratios of
sums over the same documents, so their difference is one too, R_A - R_B = sum(a_i - b_i) / sum(s_i), and its error is that
of a ratio (delta method: Cochran, Sampling Techniques, 3rd ed., eq. 6.13) with the residuals
z_i = a_i - b_i - (R_A - R_B) s_i. What makes a document hard for both cancels in z_i: this is what pairing gains (for scores
of language models: E. Miller, Adding Error Bars to Evals, arXiv:2411.00640, section 4).

**Several seeds a setting.** Two things were drawn by chance: the documents, and the seeds. Each seed of a setting scores
every document, so the two are crossed, not nested, and bits of seed k on document i of setting s are modelled as

    y_ski = s_i mu_s + s_i seed_sk + document_si + both_ski

The difference of the settings' means over K_s seeds has the variance

    V = V_documents + V_seeds - V_both

V_documents: from the residuals of the seed-averaged bits, as above. V_seeds: S_A^2 / K_A + S_B^2 / K_B, with S_s^2 the
variance of the seeds' scores on these documents. Each of the two holds the part of ``both`` once, so it is taken off once
(V_both: the same variance from the residuals y_ski - mean_k y_ski - (R_sk - R_s) s_i). This is the estimator for two crossed
clusters of Cameron, Gelbach and Miller (2011, J. Business and Economic Statistics 29:238), and that of a crossed analysis of
variance. V is not let below V_documents or V_seeds, which are its parts.

**Degrees of freedom** are few where seeds are: K_s - 1 for each S_s^2, n - 1 for the documents, joined as Welch (1947) and
Satterthwaite (1946) do. With three seeds a side the quantile of 95 % is 2.8 to 4.3 rather than 1.96.

**Where a setting has one seed**, its seed variance cannot be seen. If the other one has several, the same variance is assumed
(and said). If neither has, the error is that of the documents alone: it says whether *these two sets of weights* differ,
not whether the settings do.

Shapes: K seeds, N documents. Nats in, bits per byte out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from firstlight.errors import DataError
from firstlight.eval.document_scores import bits_per_byte
from firstlight.eval.student_t import t_cdf, t_quantile

SeedNoise = Literal["measured", "from the other setting", "not in it"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """bpb of setting A minus that of setting B: above 0 where B is better. Bits per byte, all errors as well.

    stderr: of the difference, with ``df`` degrees of freedom; low, high: the interval of 95 %.
    documents_stderr, seeds_stderr: its two parts (None: not known). unpaired_stderr: what the documents' part would be if
    the two settings had been scored on different documents. paired: whether the documents were compared one by one.
    p_value: two-sided. num_documents is None where it is not known.
    """

    difference: float
    stderr: float
    df: float
    low: float
    high: float
    p_value: float
    documents_stderr: float
    seeds_stderr: float | None
    unpaired_stderr: float
    num_documents: int | None
    num_seeds: tuple[int, int]
    seed_noise: SeedNoise
    paired: bool

    @property
    def outcome(self) -> Literal["a is better", "b is better", "no difference shown"]:
        if self.low > 0:
            return "b is better"
        return "a is better" if self.high < 0 else "no difference shown"


def paired_difference(nats_a_KN: np.ndarray, nats_b_KN: np.ndarray, num_bytes_N: np.ndarray) -> Difference:
    """Difference of two settings on the same documents; each has K_A and K_B rows, one a seed.

    Raises DataError for fewer than two documents, no byte, or a loss that is not finite.
    """
    bits_a_KN, bits_b_KN = (
        np.atleast_2d(np.asarray(nats, np.float64)) / math.log(2) for nats in (nats_a_KN, nats_b_KN)
    )
    size_N = np.asarray(num_bytes_N, np.float64)
    n, total = len(size_N), float(size_N.sum())
    if n < 2 or total == 0:
        raise DataError(
            f"{n} documents with {total:.0f} bytes give a difference but no error",
            hint="score at least two documents: firstlight eval bpb RUN",
        )
    num_bad = int((~np.isfinite(bits_a_KN)).any(axis=0).sum() + (~np.isfinite(bits_b_KN)).any(axis=0).sum())
    if num_bad:
        raise DataError(
            f"the loss is not finite on {num_bad} documents, so there is no difference to give",
            hint="such a model is broken; look at its report",
        )
    factor = n / (n - 1) / total**2
    difference_N = bits_a_KN.mean(axis=0) - bits_b_KN.mean(axis=0)
    difference = float(difference_N.sum()) / total
    v_documents = factor * float(((difference_N - difference * size_N) ** 2).sum())

    parts = [_seed_parts(bits_KN, size_N, factor) for bits_KN in (bits_a_KN, bits_b_KN)]
    num_seeds = (len(bits_a_KN), len(bits_b_KN))
    seed_noise, variances, dfs = _both_settings([None if p is None else p[0] for p in parts], num_seeds)
    _, both, _ = _both_settings([None if p is None else p[1] for p in parts], num_seeds)
    stderrs = [bits_per_byte(bits_KN.mean(axis=0), size_N)[1] for bits_KN in (bits_a_KN, bits_b_KN)]
    return _made(
        difference, v_documents, variances, dfs, v_both=sum(both), n=n, num_seeds=num_seeds, seed_noise=seed_noise,
        # bits_per_byte takes nats; here bits went in.
        unpaired_stderr=math.log(2) * math.hypot(*(error or 0.0 for error in stderrs)), paired=True,
    )  # fmt: skip


def unpaired_difference(
    bpb_a: Sequence[float],
    bpb_b: Sequence[float],
    stderr_a: Sequence[float],
    stderr_b: Sequence[float],
    *,
    num_documents: int | None = None,
) -> Difference:
    """Difference of two settings from their seeds' scores alone, with each score's own standard error over documents.

    The errors are joined as if the documents were different ones, which is too much where they are the same. The documents
    of a setting's seeds are the same, so their error is not divided by the number of seeds.
    """
    v_documents = float(np.mean(stderr_a)) ** 2 + float(np.mean(stderr_b)) ** 2
    found = [float(np.var(bpb, ddof=1)) if len(bpb) > 1 else None for bpb in (bpb_a, bpb_b)]
    num_seeds = (len(bpb_a), len(bpb_b))
    seed_noise, variances, dfs = _both_settings(found, num_seeds)
    return _made(
        float(np.mean(bpb_a)) - float(np.mean(bpb_b)), v_documents, variances, dfs, v_both=0.0, n=num_documents,
        num_seeds=num_seeds, seed_noise=seed_noise, unpaired_stderr=math.sqrt(v_documents), paired=False,
    )  # fmt: skip


def _seed_parts(bits_KN: np.ndarray, size_N: np.ndarray, factor: float) -> tuple[float, float] | None:
    """(variance of the seeds' scores on these documents, the part of it that is of these documents), for one seed; None
    where there is one.
    """
    num_seeds = len(bits_KN)
    if num_seeds < 2:
        return None
    bpb_K = bits_KN.sum(axis=1) / size_N.sum()
    residual_KN = bits_KN - bits_KN.mean(axis=0) - (bpb_K - bpb_K.mean())[:, None] * size_N
    return float(np.var(bpb_K, ddof=1)), factor * float((residual_KN**2).sum()) / (num_seeds - 1)


def _both_settings(
    found: Sequence[float | None], num_seeds: tuple[int, int]
) -> tuple[SeedNoise, list[float], list[int]]:
    """(where the seeds' variance is from, each setting's variance of the mean over seeds, degrees of freedom of each).

    A setting of one seed takes the other's variance; the two are then one estimate with one number of degrees of freedom.
    """
    match found:
        case [None, None]:
            return "not in it", [], []
        case [None, float(known)] | [float(known), None]:
            several = max(num_seeds)
            return "from the other setting", [known * (1 / num_seeds[0] + 1 / num_seeds[1])], [several - 1]
        case _:
            variances = [variance / k for variance, k in zip(found, num_seeds, strict=True) if variance is not None]
            return "measured", variances, [k - 1 for k in num_seeds]


def _made(
    difference: float,
    v_documents: float,
    v_seeds_each: Sequence[float],
    dfs: Sequence[int],
    *,
    v_both: float,
    n: int | None,
    num_seeds: tuple[int, int],
    seed_noise: SeedNoise,
    unpaired_stderr: float,
    paired: bool,
) -> Difference:
    v_seeds = sum(v_seeds_each)
    variance = max(v_documents + v_seeds - v_both, v_documents, v_seeds)
    spread = v_documents**2 / (n - 1 if n else math.inf)
    spread += sum(v**2 / df for v, df in zip(v_seeds_each, dfs, strict=True))
    df = variance**2 / spread if spread > 0 else math.inf
    stderr = math.sqrt(variance)
    half = t_quantile((1 + CONFIDENCE) / 2, df) * stderr
    if stderr > 0:
        p_value = 2 * (1 - t_cdf(abs(difference) / stderr, df))
    else:
        p_value = 1.0 if difference == 0 else 0.0
    return Difference(
        difference=difference,
        stderr=stderr,
        df=df,
        low=difference - half,
        high=difference + half,
        p_value=p_value,
        documents_stderr=math.sqrt(v_documents),
        seeds_stderr=None if seed_noise == "not in it" else math.sqrt(v_seeds),
        unpaired_stderr=unpaired_stderr,
        num_documents=n,
        num_seeds=num_seeds,
        seed_noise=seed_noise,
        paired=paired,
    )


def verdict(found: Difference, name_a: str, name_b: str) -> str:
    """The difference in one plain sentence: which is better and by how much, or that none was shown.

    A difference that is not shown may be there: the interval says how large it could still be.
    """
    decimals = 4 if found.stderr == 0 else max(3, min(6, 1 - math.floor(math.log10(found.stderr))))

    def show(value: float) -> str:
        return f"{value + 0.0:.{decimals}f}"

    if found.stderr == 0 and found.difference == 0:
        return f"no difference at all: {name_a} and {name_b} score every document the same"
    if found.outcome == "no difference shown":
        return (
            f"no difference shown between {name_a} and {name_b} ({show(abs(found.difference))} ± {show(found.stderr)} bpb;"
            f" 95 % interval of {name_a} minus {name_b}: {show(found.low)} to {show(found.high)})"
        )
    better = name_b if found.outcome == "b is better" else name_a
    low, high = sorted((abs(found.low), abs(found.high)))
    return (
        f"{better} is better by {show(abs(found.difference))} ± {show(found.stderr)} bpb"
        f" (95 % interval {show(low)} to {show(high)})"
    )


def what_is_in_the_error(found: Difference, *, spread_elsewhere: tuple[str, float] | None = None) -> str:
    """One sentence on what a verdict's error covers and what not.

    spread_elsewhere: a setting of several seeds and the standard deviation of its seeds' scores, where one is known.
    """
    documents = f"{found.num_documents:,} documents" if found.num_documents else "the documents"
    paired = "compared one by one" if found.paired else "as if each side had its own documents, which is too much"
    match found.seed_noise:
        case "measured":
            return f"the error covers {documents} ({paired}) and the spread of {found.num_seeds[0]} and {found.num_seeds[1]} seeds"
        case "from the other setting":
            return (
                f"the error covers {documents} ({paired}) and seeds: one side has one seed, and is taken to spread as the other's"
                f" {max(found.num_seeds)}"
            )
        case _:
            typical = (
                f"two seeds of {spread_elsewhere[0]} differ by {math.sqrt(2) * spread_elsewhere[1]:.4f} (one standard deviation)"
                if spread_elsewhere
                else "how far two seeds of one setting lie apart is not known here"
            )
            return (
                f"one seed each: the error covers {documents} alone ({paired}), so this is about these two models;"
                f" chance between seeds is not in it, and {typical}"
            )
