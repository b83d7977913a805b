"""Claims of eval/chat/compare.py, beside the textbook's paired t and a bootstrap."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from firstlight.errors import DataError
from firstlight.eval.chat.compare import Gain, compare, mean_gain, task_gain
from firstlight.eval.chat.results import ChatResult, TaskScore


def answers(share: float, num: int, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(num) < share).tolist()


def test_a_gain_is_the_paired_t_of_the_textbook() -> None:
    mpmath = pytest.importorskip("mpmath", reason="comes with torch (sympy)")
    ours, theirs = answers(0.6, 90, 1), answers(0.45, 90, 2)
    found = task_gain("t", ours, theirs)
    differences = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    assert found.difference == pytest.approx(statistics.mean(differences))
    assert found.stderr == pytest.approx(statistics.stdev(differences) / math.sqrt(90))
    t = found.difference / found.stderr
    p_value = mpmath.betainc(89 / 2, 0.5, 0, 89 / (89 + t * t), regularized=True)
    assert found.p_value == pytest.approx(float(p_value))
    # 1.986979: the quantile of 97.5 % at 89 degrees of freedom, from a table.
    half = 1.986979 * found.stderr
    assert (found.low, found.high) == (
        pytest.approx(found.difference - half, abs=1e-6),
        pytest.approx(found.difference + half, abs=1e-6),
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        ([True] * 30 + [False] * 20, [False] * 50, "significantly better"),
        ([False] * 50, [True] * 30 + [False] * 20, "significantly worse"),
        ([True, False] * 20, [False, True] * 20, "no difference shown"),
        ([True] * 40, [False] * 40, "significantly better"),
    ],
)
def test_the_verdict_has_the_right_sign(ours: list[bool], theirs: list[bool], outcome: str) -> None:
    found = task_gain("t", ours, theirs)
    assert found.outcome == outcome
    assert outcome in found.words()


def test_equal_answers_are_no_difference_at_all() -> None:
    found = task_gain("t", [True, False] * 9, [True, False] * 9)
    assert (found.difference, found.outcome, found.words()) == (0.0, "no difference shown", "no difference at all")


def test_the_mean_of_several_tasks_has_the_error_of_a_bootstrap() -> None:
    draw = np.random.default_rng(5)
    sizes, chances = [400, 150], [0.25, 0.0]
    pairs = [(np.array(answers(0.5, n, n)), np.array(answers(0.4, n, n + 1))) for n in sizes]
    found = mean_gain(
        [task_gain("t", a.tolist(), b.tolist()) for a, b in pairs], chances, name="mean"
    )  # fmt: skip
    expected = sum((a.mean() - b.mean()) / (1 - c) for (a, b), c in zip(pairs, chances, strict=True)) / 2
    assert found.difference == pytest.approx(expected)
    drawn = []
    for _ in range(2000):
        total = 0.0
        for (a, b), chance in zip(pairs, chances, strict=True):
            i = draw.integers(len(a), size=len(a))
            total += (a[i].mean() - b[i].mean()) / (1 - chance)
        drawn.append(total / 2)
    assert found.stderr == pytest.approx(float(np.std(drawn)), rel=0.06)
    assert 149 < found.df < 549
    sure = Gain("t", 1.0, 0.0, math.inf, 1.0, 1.0, 0.0)
    assert mean_gain([sure, sure], [0.0, 0.5], name="m").difference == pytest.approx(1.5)


def scored(name: str, right: list[bool], formatted: list[bool] | None = None, content: str = "h") -> TaskScore:
    kind = "categorical" if formatted is None else "generative"
    return TaskScore(name, kind, 0.0, tuple(right), tuple(formatted or ()), {}, 0, 1.0, {}, content)


def test_tasks_their_form_and_the_mean_are_compared() -> None:
    ours = ChatResult((scored("a", [True] * 9 + [False]), scored("b", [True] * 10, [True] * 10)), 10)
    theirs = ChatResult((scored("b", [False] * 10, [False] * 10), scored("a", [False] * 10)), 10)
    gains = compare(ours, theirs)
    assert [gain.name for gain in gains] == ["a", "b", "b, form", ours.name]
    assert [gain.difference for gain in gains] == [pytest.approx(x) for x in (0.9, 1.0, 1.0, 0.95)]
    assert gains[0].to_dict()["outcome"] == "significantly better"


def test_other_questions_are_not_compared() -> None:
    one = ChatResult((scored("a", [True] * 4),), None)
    for other in (scored("b", [True] * 4), scored("a", [True] * 4, content="x"), scored("a", [True] * 5)):
        with pytest.raises(DataError, match="same questions"):
            compare(one, ChatResult((other,), None))
    with pytest.raises(DataError, match="one question"):
        task_gain("a", [True], [False])
    with pytest.raises(DataError, match="2 and 3"):
        task_gain("a", [True] * 2, [False] * 3)
