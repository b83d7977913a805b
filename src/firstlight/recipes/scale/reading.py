"""What a study says, in sentences for a person who does not fit curves for a living; doubts included."""

from __future__ import annotations

from firstlight.recipes.scale.fit import BudgetFit, StudyFit
from firstlight.recipes.scale.results import StudyResults
from firstlight.runtime.console import format_count, format_duration

MISFIT = 4.0
"""A miss of so many standard deviations between seeds is called one: of nine cells, one in two thousand studies has it by luck."""


def headline(results: StudyResults) -> tuple[str, str]:
    """The compute-optimal tokens per parameter at the largest budget that shows one, and a sentence about it."""
    fit = results.fit
    if fit is None:
        return "–", "No cell is done yet."
    found = best_known(fit)
    if found is None:
        return "not determined", "No budget has a lowest point near the sizes that were tried."
    ratio = found.tokens_per_param
    low = f"{ratio.low:.2g}" if ratio.low is not None else "?"
    high = f"{ratio.high:.2g}" if ratio.high is not None else "?"
    size = f"{format_count(found.best_params.value or 0)} parameters on {format_count(found.best_tokens.value or 0)} tokens"
    doubt = (
        f" The {found.edge} of the sizes was the best, so it leans on the curve alone: a range, not a value."
        if found.edge
        else ""
    )
    return (
        f"{ratio.value:.2g} ({low} to {high})",
        f"At {found.flops:.2g} FLOPs: {size}. In brackets, 95 % of the bootstrap.{doubt}",
    )


def best_known(fit: StudyFit) -> BudgetFit | None:
    """The largest budget whose ratio has both ends and whose lowest point lies between the sizes; else one with a value."""
    with_value = [b for b in fit.budgets if b.tokens_per_param.value is not None]
    sure = [b for b in with_value if b.tokens_per_param.is_determined and not b.edge]
    return (sure or [b for b in with_value if b.tokens_per_param.is_determined] or with_value or [None])[-1]


def read_study_in_words(results: StudyResults) -> list[str]:
    """The reading: what was done, where the best sizes lie, how they grow, what the surface adds, what is doubtful."""
    study, fit = results.study, results.fit
    took = format_duration(sum(study.launches_s)) if study.launches_s else "–"
    sentences = [
        f"{results.num_done} of {len(results.outcomes)} cells are done ({took} in all launches). Each budget of compute was "
        f"spent on models of {len(study.depths)} sizes: the small ones saw many tokens, the large ones few. Every score is in "
        "bits per byte of the same validation documents, so all can be compared."
    ]
    if fit is None:
        return sentences
    for b in fit.budgets:
        if b.best_params.value is None:
            sentences.append(
                f"At {b.flops:.2g} FLOPs no best size shows: the scores do not turn within the sizes tried."
            )
            continue
        where = f" The best of the cells is the {b.edge} size, so this rests on the curve alone." if b.edge else ""
        sentences.append(
            f"At {b.flops:.2g} FLOPs the best size is {format_count(b.best_params.value)} parameters "
            f"({_range(b.best_params.low, b.best_params.high)}) on {format_count(b.best_tokens.value or 0)} tokens: "
            f"{b.tokens_per_param.describe()} tokens per parameter.{where}"
        )
    if fit.params_exponent is not None and fit.params_exponent.value is not None:
        sentences.append(
            f"With more compute the best size grows as C^a, a = {fit.params_exponent.describe('.2f')}, and the tokens as C^b, "
            f"b = {fit.tokens_exponent.describe('.2f') if fit.tokens_exponent else '–'}: at a = b = 0.5 both grow alike, and "
            "the ratio stays (Hoffmann et al. 2022 found 0.49 and 0.51 in the same way on models of 70 M to 10 B)."
        )
    if fit.surface is not None:
        sentences.append(
            f"The surface through all cells gives a = {fit.surface.params_exponent.describe('.2f')} and a floor of "
            f"E = {fit.surface.E.describe('.2f')} bits per byte; its largest miss is {_largest_miss(fit):.4f}."
        )
        if 0 < MISFIT * fit.seed_noise < _largest_miss(fit):
            sentences.append(
                f"That is {_largest_miss(fit) / fit.seed_noise:.0f} times the noise between seeds: these cells do not lie on a "
                "surface of this form, and its numbers are not to be trusted. Cells of few steps are the usual cause."
            )
    noise = (
        f"Between seeds the scores have a standard deviation of {fit.seed_noise:.4f}, measured here."
        if fit.is_noise_measured
        else f"The noise between seeds, {fit.seed_noise:g} bits per byte, is assumed, not measured: each cell has one seed."
    )
    sentences.append(
        f"{noise} Error bars also hold {fit.documents}. They do not hold what all cells have in common: their learning "
        "rates and batch sizes, which may suit one size better than another, this text, and this range of compute."
    )
    most = max(p.num_tokens for p in fit.points) / study.num_train_tokens
    if most > 1:
        sentences.append(
            f"The longest cell passes the {format_count(study.num_train_tokens)} training tokens {most:.1f} times; repeated "
            "text teaches less, which makes small sizes look a little worse at that budget."
        )
    return sentences


def _range(low: float | None, high: float | None) -> str:
    return f"{format_count(low) if low is not None else 'open'} to {format_count(high) if high is not None else 'open'}"


def _largest_miss(fit: StudyFit) -> float:
    assert fit.surface is not None
    return max(abs(p.bpb - said) for p, said in zip(fit.points, fit.surface.predicted, strict=True))
