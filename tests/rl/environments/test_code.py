"""Functions to write: problems whose own answers pass, and rewards from real runs in the sandbox."""

from __future__ import annotations

import json

import pytest

from firstlight.errors import ConfigError, DataError
from firstlight.rl.environments import code
from firstlight.rl.environments.code import code_of, is_python, with_tests
from firstlight.rl.environments.table import open_environment


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    try:
        return open_environment("code", cache_dir=tmp_path_factory.mktemp("cache"))
    except ConfigError as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture(scope="module")
def add_7(environment):
    problems = [environment.problem(s, i) for s in ("train", "test") for i in range(environment.num_problems(s))]
    return next(problem for problem in problems if "add_7(n)" in problem.messages[0].text)


def test_problems_are_many_and_apart(environment) -> None:
    asks = {
        s: {environment.problem(s, i).messages[0].text for i in range(environment.num_problems(s))}
        for s in ("train", "test")
    }
    assert not asks["train"] & asks["test"]
    assert len(asks["train"]) > 150
    assert len(asks["test"]) > 10
    assert "Write a Python function repeat_3(text) that returns text repeated 3 times." in asks["train"] | asks["test"]


def test_a_test_by_hand(add_7) -> None:
    assert add_7.messages[0].text == "Write a Python function add_7(n) that returns n plus 7."
    assert add_7.extra == [f"assert add_7({n}) == {n + 7}" for n in (0, 1, 7, 12, -5)]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("def add_7(n):\n    return n + 7", 1.0),
        ("Here it is:\n```python\ndef add_7(n):\n    return n + 7\n```\nDone.", 1.0),
        ("def add_7(n):\n    return abs(n) + 7", 0.8),
        ("def add_7(n):\n    return n + 8", 0.0),
        ("def add_8(n):\n    return n + 7", 0.0),
        ("def add_7(n):\n    while True: pass", 0.0),
        ("import sys\ndef add_7(n): return n + 7\nsys.exit(0)", 0.0),
        ("def add_7(n): return n + 7\nfor i in range(9): print('passed', i)\nraise ValueError", 0.0),
    ],
)
def test_rewards_of_running_programs(environment, add_7, answer, reward) -> None:
    assert environment.reward(add_7, answer, ()) == reward


@pytest.mark.parametrize("answer", ["", "n + 7", "def add_7(n) return", "x = '\0'", "(" * 5000])
def test_what_is_no_function_is_not_run(environment, add_7, monkeypatch, answer) -> None:
    monkeypatch.setattr(code, "run_program", lambda *a, **k: pytest.fail("it was run"))
    assert environment.reward(add_7, answer, ()) == 0.0
    assert not environment.has_format(add_7, answer)


def test_reading_answers() -> None:
    assert code_of("a\n```py\nx = 1\n```\n```\ny\n```") == "x = 1\n"
    assert code_of("```\nx = 1") == "x = 1"
    assert is_python("def f(): pass")
    assert "print('w 1', flush=True)" in with_tests("x = 1", ["assert x", "assert True"], "w")


def test_problems_of_a_file(tmp_path, environment) -> None:
    rows = [{"prompt": f"Write f{i}.", "tests": [f"assert f{i}() == {i}"]} for i in range(20)]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = open_environment(f"code:{path}", cache_dir=tmp_path)
    assert [own.num_problems(split) for split in ("train", "test")] == [18, 2]
    assert own.problem("test", 0).messages[0].text == "Write f9."
    assert own.reward(own.problem("train", 3), "def f3(): return 3", ()) == 1.0
    for bad in ('{"prompt": "x"}', '{"prompt": "x", "tests": []}', '{"prompt": "x", "tests": ["assert ("]}', "5"):
        path.write_text(json.dumps(rows[0]) + "\n" + bad)
        with pytest.raises(DataError, match=r"tasks\.jsonl:1"):
            open_environment(f"code:{path}", cache_dir=tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        open_environment(f"code:{tmp_path / 'none.jsonl'}", cache_dir=tmp_path)
