"""The sentences: they hold the numbers, and the doubts."""

from __future__ import annotations

from firstlight.recipes.scale.reading import best_known, headline, read_study_in_words


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
