"""Quantiles of Student's t: printed tables, and the closed forms for one and two degrees of freedom."""

from __future__ import annotations

import math

import pytest

from firstlight.eval.student_t import t_cdf, t_quantile

# Fisher and Yates, Statistical Tables, as printed in every textbook: two-sided 95 % and 99 % points.
TABLE = {
    1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032), 6: (2.447, 3.707),
    8: (2.306, 3.355), 10: (2.228, 3.169), 15: (2.131, 2.947), 20: (2.086, 2.845), 30: (2.042, 2.750),
    40: (2.021, 2.704), 60: (2.000, 2.660), 120: (1.980, 2.617), math.inf: (1.960, 2.576),
}  # fmt: skip


@pytest.mark.parametrize("df", TABLE)
def test_the_printed_table(df):
    assert t_quantile(0.975, df) == pytest.approx(TABLE[df][0], abs=6e-4)
    assert t_quantile(0.995, df) == pytest.approx(TABLE[df][1], abs=6e-4)


@pytest.mark.parametrize("prob", [0.001, 0.025, 0.3, 0.5, 0.8, 0.975, 0.9999])
def test_closed_forms(prob):
    assert t_quantile(prob, 1) == pytest.approx(math.tan(math.pi * (prob - 0.5)), rel=1e-9, abs=1e-12)
    expected = (2 * prob - 1) * math.sqrt(1 / (2 * prob * (1 - prob)))
    assert t_quantile(prob, 2) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_fractions_of_a_degree_lie_between_whole_ones_and_many_degrees_are_normal():
    assert TABLE[3][0] < t_quantile(0.975, 2.5) < TABLE[2][0]
    assert t_quantile(0.975, 3.0001) == pytest.approx(t_quantile(0.975, 3), abs=1e-3)
    # Expansion of Fisher (1925): z + (z^3 + z) / (4 df).
    z = 1.959963985
    for df in (1e3, 2e5, 9e6, 1e9):
        assert t_quantile(0.975, df) == pytest.approx(z + (z**3 + z) / (4 * df), abs=4e-6)


def test_the_two_functions_are_inverse():
    for df in (0.7, 1.3, 7, 99.5, 5e4):
        for prob in (0.01, 0.5, 0.9, 0.999):
            assert t_cdf(t_quantile(prob, df), df) == pytest.approx(prob, abs=1e-12)


@pytest.mark.parametrize(("prob", "df"), [(0.0, 3), (1.0, 3), (0.5, 0), (0.5, math.nan), (1.2, 3)])
def test_what_cannot_be_is_refused(prob, df):
    with pytest.raises(ValueError, match=r"degrees of freedom|probability"):
        t_quantile(prob, df)
