"""Small Python functions to write, judged by tests that run in the sandbox.

    Write a Python function add_7(n) that returns n plus 7.        reward: share of the asserts that pass

The answer is the code, alone or in a fence. ``code`` makes its problems; ``code:FILE.jsonl`` reads rows of
``{"prompt": "...", "tests": ["assert add_7(1) == 8", ...]}`` and sets every tenth aside for testing.

Each passed assert is reported by a line with a word that is made anew for every run, so that printing numbers earns
nothing. A program that looks for the word in its own process could still find it.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.data.chat.builtin_example import split_of
from firstlight.errors import DataError
from firstlight.eval.sandbox.program import Limits, find_isolation, run_program
from firstlight.rl.environments.base import SPLITS, Problem, Split
from firstlight.rl.environments.listed import ListedEnvironment, check_not_empty
from firstlight.tokens.conversation import Message, Part

LIMITS = Limits(wall_s=2.0, memory_bytes=256 * 2**20, output_bytes=64 * 2**10)

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CodeEnvironment(ListedEnvironment):
    """A `ListedEnvironment` whose rewards come from running tests. without: what the sandbox cannot do on this machine."""

    without: tuple[str, ...] = ()

    def reward(self, problem: Problem, text: str, parts: tuple[Part, ...]) -> float:
        code = code_of(text)
        if not is_python(code):
            return 0.0
        word = secrets.token_hex(16)
        result = run_program(with_tests(code, problem.extra, word), limits=LIMITS, without=self.without)
        passed = {line for line in result.stdout.splitlines() if line.startswith(word)}
        return len(passed) / len(problem.extra)

    def has_format(self, problem: Problem, text: str) -> bool:
        return is_python(code_of(text))


def code_of(text: str) -> str:
    """The code of an answer: what is inside its first fence, or all of it."""
    fenced = _FENCE.search(text)
    return fenced[1] if fenced else text


def is_python(code: str) -> bool:
    """Whether it reads as Python and defines a function. It is only read."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef) for node in tree.body)


def with_tests(code: str, tests: list[str], word: str) -> str:
    """A program that runs the code, then each test, and prints ``word`` and a test's number where it passed."""
    pieces = [code]
    for i, test in enumerate(tests):
        body = "\n".join(f"    {line}" for line in test.splitlines())
        pieces.append(f"try:\n{body}\n    print({f'{word} {i}'!r}, flush=True)\nexcept Exception:\n    pass")
    return "\n".join(pieces) + "\n"


def open_code(place: str, *, cache_dir: Path) -> CodeEnvironment:
    """The environment. Raises ConfigError where programs cannot be run here, DataError for a file of something else."""
    without, _ = find_isolation()
    problems = _from_file(Path(place).expanduser()) if place else _made()
    environment = CodeEnvironment("code", "docs", problems, without=without)
    check_not_empty(environment, hint="a file needs ten problems or more")
    return environment


def _from_file(path: Path) -> dict[Split, list[Problem]]:
    found: dict[Split, list[Problem]] = {"train": [], "test": []}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"code:{path} cannot be read: {error}") from error
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            tests = [test for test in row["tests"] if ast.parse(test).body]
            problem = Problem((Message.of("user", row["prompt"]),), "", f"{path.name}:{i}", tests)
        except (ValueError, TypeError, KeyError, SyntaxError) as error:
            raise DataError(
                f"{path.name}:{i} is no problem with tests ({type(error).__name__}: {error})",
                hint='{"prompt": "...", "tests": ["assert f(1) == 2"]}',
            ) from error
        if not tests:
            raise DataError(f"{path.name}:{i} has no test", hint='"tests": ["assert f(1) == 2"]')
        found["test" if i % 10 == 9 else "train"].append(problem)
    return found


@dataclass(frozen=True)
class _Family:
    """Problems that differ in a constant. name and words have a place {k} for it; arguments are given one at a time."""

    name: str
    words: str
    function: Callable[[Any, int], Any]
    arguments: tuple[Any, ...]
    argument_name: str
    constants: range


_NUMBERS = (0, 1, 7, 12, -5)
_TEXTS = ("stone", "a", "banana bread", "", "Python")
_LISTS = ([3, 1, 2], [10], [5, 5, -5, 0], [9, 8, 7, 6], [-1, -2])

FAMILIES = (
    _Family("add_{k}", "n plus {k}", lambda n, k: n + k, _NUMBERS, "n", range(1, 31)),
    _Family("subtract_{k}", "n minus {k}", lambda n, k: n - k, _NUMBERS, "n", range(1, 31)),
    _Family("times_{k}", "n times {k}", lambda n, k: n * k, _NUMBERS, "n", range(2, 31)),
    _Family("remainder_{k}", "the remainder of n divided by {k}", lambda n, k: n % k, _NUMBERS, "n", range(2, 21)),
    _Family("is_multiple_of_{k}", "True if n is a multiple of {k} and False otherwise", lambda n, k: n % k == 0,
            (0, 6, 10, 21, 36), "n", range(2, 13)),
    _Family("repeat_{k}", "text repeated {k} times", lambda t, k: t * k, _TEXTS, "text", range(2, 9)),
    _Family("first_{k}", "the first {k} characters of text", lambda t, k: t[:k], _TEXTS, "text", range(1, 9)),
    _Family("last_{k}", "the last {k} characters of text", lambda t, k: t[-k:], _TEXTS, "text", range(1, 9)),
    _Family("drop_{k}", "text without its first {k} characters", lambda t, k: t[k:], _TEXTS, "text", range(1, 9)),
    _Family("larger_than_{k}", "a list of the values that are larger than {k}", lambda v, k: [x for x in v if x > k],
            _LISTS, "values", range(0, 11)),
    _Family("sum_plus_{k}", "the sum of the values plus {k}", lambda v, k: sum(v) + k, _LISTS, "values", range(1, 21)),
    _Family("each_times_{k}", "a list of the values, each times {k}", lambda v, k: [x * k for x in v], _LISTS, "values",
            range(2, 21)),
)  # fmt: skip


def _made() -> dict[Split, list[Problem]]:
    found: dict[Split, list[Problem]] = {split: [] for split in SPLITS}
    for family in FAMILIES:
        for k in family.constants:
            name = family.name.format(k=k)
            call = f"{name}({family.argument_name})"
            prompt = f"Write a Python function {call} that returns {family.words.format(k=k)}."
            tests = [f"assert {name}({x!r}) == {family.function(x, k)!r}" for x in family.arguments]
            split: Split = "test" if split_of(f"code {name}") == "test" else "train"
            found[split].append(Problem((Message.of("user", prompt),), "", f"code-{split}:{name}", tests))
    return found
