"""The Python tool for the answers of an environment that allows it, with one calculator for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from firstlight.infer.batch import ToolFactory
from firstlight.infer.calculator import Calculator
from firstlight.infer.tools import PythonTool
from firstlight.rl.environments.base import Environment
from firstlight.tokens.bpe import Tokenizer


@contextmanager
def open_tool(environment: Environment, tokenizer: Tokenizer) -> Iterator[ToolFactory | None]:
    """What makes the tool of one answer, or None where the environment has none. The calculator is closed at the end."""
    if not environment.uses_python:
        yield None
        return
    with Calculator() as calculator:
        yield lambda: PythonTool(tokenizer, calculator.run)
