"""HumanEval: write a Python function from its signature and docstring; its tests decide (Chen et al. 2021, arXiv 2107.03374).

One answer is asked for and run once (pass@1) in the sandbox (`firstlight.eval.sandbox`). A program counts as passed only
where it came to its very end: one that leaves early, with exit code 0 or not, has not run its tests.
"""

from __future__ import annotations

import ast
import re
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from firstlight.errors import DataError
from firstlight.eval.chat.multiple_choice import Row
from firstlight.eval.chat.task import ChatTask, Grade, Item
from firstlight.eval.sandbox.program import Limits, find_isolation, run_program
from firstlight.tokens.conversation import Message

ANSWER_TOKENS = 400
ASK = "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt}```"
LIMITS = Limits(wall_s=20.0, cpu_s=5)
"""All 164 right answers take under a second of processor time; on a busy machine that may be many of the clock."""

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def humaneval(rows: Sequence[Row], *, passes: Callable[[str], bool] | None = None) -> ChatTask:
    """passes: whether a program passes its own tests; the sandbox where None. Raises DataError for a row of another form."""
    notes: tuple[str, ...] = ()
    if passes is None:
        without, notes = find_isolation()
        passes = partial(passes_tests, without=without)
    return ChatTask(
        "humaneval", "generative", tuple(_item(where, row, passes) for where, row in rows), ANSWER_TOKENS, notes
    )


def _item(where: str, row: Any, passes: Callable[[str], bool]) -> Item:
    keys = ("prompt", "test", "entry_point")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise DataError(f"{where} is no problem of HumanEval", hint=f"a row has the texts {', '.join(keys)}")
    prompt, test, name = (row[key] for key in keys)
    messages = (Message.of("user", ASK.format(prompt=prompt if prompt.endswith("\n") else f"{prompt}\n")),)
    return Item(messages, test, where, grade=lambda reply: graded(reply, prompt, test, name, passes))


def graded(reply: str, prompt: str, test: str, name: str, passes: Callable[[str], bool]) -> Grade:
    """The reply's function against the tests. Its form is right where it is Python that defines the function."""
    program = program_of(reply, prompt, name)
    if program is None:
        return Grade(False, False)
    return Grade(passes(f"{program}\n\n{test}\n\ncheck({name})\n"), True)


def program_of(reply: str, prompt: str, name: str) -> str | None:
    """The prompt's own first lines (imports, helpers) and the reply's function, or None where there is no such function.

    The reply's first code block counts, or all of it where it has none. A reply that is only the function's body is put
    behind the prompt.
    """
    block = _FENCED.search(reply)
    code = block[1] if block else reply
    before = prompt[: prompt.rfind(f"def {name}")]
    for program in (f"{before}\n{code}", prompt + code):
        if _defines(program, name):
            return program
    return None


def _defines(program: str, name: str) -> bool:
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return any(_does_something(node) for node in functions)


def _does_something(function: ast.FunctionDef) -> bool:
    """Whether there is more than a docstring: a prompt alone is valid Python, and no answer."""
    return not all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in function.body
    )


def passes_tests(program: str, *, without: Sequence[str] = ()) -> bool:
    """Whether a program runs to its end in the sandbox. The mark at the end is another one each time."""
    mark = secrets.token_hex(8)
    result = run_program(f"{program}\nprint({mark!r})\n", limits=LIMITS, without=without)
    return result.status == "ok" and result.stdout.endswith(f"{mark}\n")
