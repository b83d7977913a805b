"""The sentences: they hold the numbers, and the doubts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from firstlight.recipes.scale.reading import best_known, headline, read_study_in_words
from firstlight.recipes.scale.results import results_of


def test_a_good_study_is_read_with_its_numbers(make_results) -> None:
    results = make_results()
    words = " ".join(read_study_in_words(results))
    assert "9 of 9 cells are done (15 min 00 s in all launches)" in words
    assert "tokens per parameter" in words
    assert "assumed, not measured" in words
    assert "The surface through all cells gives a = 0.57" in words
    big, small = headline(results)
    found = best_known(results.fit)
    assert big.startswith(f"{found.tokens_per_param.value:.2g} (")
    assert "FLOPs" in small


def test_measured_noise_is_called_measured(make_results) -> None:
    words = " ".join(read_study_in_words(make_results(seeds=(1, 2), shifts=(0.01, -0.01))))
    assert "0.0141, measured here" in words


def test_repeated_text_is_said(make_results) -> None:
    # 3.6e13 FLOPs at depth 1 are 28 M tokens of 8 M.
    assert "passes the 8.00M training tokens 3.5 times" in " ".join(read_study_in_words(make_results()))


def test_nothing_done_and_nothing_determined_are_said(make_results) -> None:
    nothing = make_results(missing=[f"mine-d{d}-c{c}" for d in (1, 2, 3) for c in (1, 2, 3)])
    assert headline(nothing)[0] == "–"
    assert len(read_study_in_words(nothing)) == 1
    # Hills: the middle size is the worst at each budget.
    hill = make_results(shifts=(0.0, 0.9, 0.0))
    if best_known(hill.fit) is None:
        assert headline(hill)[0] == "not determined"


def test_a_surface_that_misses_by_far_more_than_noise_is_not_trusted(make_results) -> None:
    assert "not to be trusted" not in " ".join(read_study_in_words(make_results()))
    crooked = make_results(shifts=(0.08, -0.06, 0.07, -0.08, 0.06))
    assert "not to be trusted" in " ".join(read_study_in_words(crooked))


def test_a_best_size_at_the_end_of_the_sizes_is_doubted_in_the_headline(make_results) -> None:
    # Large models are made worse by 0.3 a step in depth: the smallest is the best at each budget.
    results = make_results()
    worse = [replace(outcome, bpb=outcome.bpb + 0.15 * (outcome.cell.depth - 1) ** 1.3) for outcome in results.outcomes]
    again = results_of(results.study, worse, Path("/nowhere"), num_draws=60)
    found = best_known(again.fit)
    assert found is None or found.edge == "smallest"
    if found is not None:
        assert "a range, not a value" in headline(again)[1]


def test_noise_of_zero_has_no_multiples(make_results) -> None:
    results = make_results(shifts=(0.05, 0.0, -0.05))
    fit = replace(results.fit, seed_noise=0.0)
    assert "times the noise" not in " ".join(read_study_in_words(replace(results, fit=fit)))
