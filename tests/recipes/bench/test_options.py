"""Every benchmark option is explained, and is called as in training where training has it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields

from firstlight.recipes.bench import options
from firstlight.recipes.settings import BaseSettings, setting_names


def test_every_option_has_a_sentence_and_the_name_that_training_uses() -> None:
    names = [field.name for field in fields(options.BenchOptions)]
    assert set(names) - {"rounds"} <= setting_names(BaseSettings)
    (node,) = [n for n in ast.parse(inspect.getsource(options)).body if isinstance(n, ast.ClassDef)]
    sentences = [n for n in node.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    assert len(sentences) == len(names) + 1
