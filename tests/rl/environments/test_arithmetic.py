"""Generated arithmetic: answers that are true, splits that share no pair of numbers, rewards for the right form only."""

from __future__ import annotations

import re

import pytest

from firstlight.errors import ConfigError
from firstlight.rl.environments.table import open_environment


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return open_environment("arithmetic", cache_dir=tmp_path_factory.mktemp("cache"))


def test_answers_of_plain_questions_are_true(environment) -> None:
    sign = {"plus": "+", "minus": "-", "times": "*"}
    num_checked = 0
    for split in ("train", "test"):
        for i in range(300):
            problem = environment.problem(split, i)
            found = re.search(r"(\d+) (\+|-|\*|plus|minus|times) (\d+)", problem.messages[-1].text)
            if found:
                a, b, op = int(found[1]), int(found[3]), sign.get(found[2], found[2])
                assert problem.answer == str({"+": a + b, "-": a - b, "*": a * b}[op])
                num_checked += 1
    assert num_checked > 300


def test_no_pair_of_numbers_is_in_both_splits(environment) -> None:
    pairs = {
        split: {
            frozenset(re.findall(r"\d+", environment.problem(split, i).messages[-1].text))
            for i in range(environment.num_problems(split))
        }
        for split in ("train", "test")
    }
    assert not pairs["train"] & pairs["test"]
    assert environment.num_problems("train") > 8_000
    assert environment.num_problems("test") > 500


def test_rewards(environment) -> None:
    problem = environment.problem("test", 0)
    right, wrong = f"so\n#### {problem.answer}", f"#### {int(problem.answer) + 1}"
    assert [environment.reward(problem, text, ()) for text in (right, wrong, problem.answer, "")] == [1, 0, 0, 0]
    assert [environment.has_format(problem, text) for text in (right, wrong, problem.answer, "")] == [1, 1, 0, 0]
    assert environment.uses_python


def test_it_is_the_same_at_each_opening(environment, tmp_path) -> None:
    again = open_environment("arithmetic", cache_dir=tmp_path)
    assert [again.problem("train", i) for i in range(50)] == [environment.problem("train", i) for i in range(50)]
    assert list(tmp_path.iterdir()) == []


def test_it_reads_nothing(tmp_path) -> None:
    with pytest.raises(ConfigError, match="reads nothing"):
        open_environment("arithmetic:folder", cache_dir=tmp_path)
