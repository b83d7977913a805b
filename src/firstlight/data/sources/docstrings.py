"""Docstrings and reference topics out of Python's own files: parsed, never imported.

Also a program, ``python -m firstlight.data.sources.docstrings``, which is how `helper_for` reads in a second process:
that needs nothing of the program that started it, whichever way it was started.
"""

from __future__ import annotations

import ast
import gc
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from firstlight.data.sources import prose
from firstlight.data.sources.helper import Helper


def topics(path: Path) -> list[str]:
    """The texts of pydoc's reference topics, in the order of their titles; read without running the file.

    The file is a module with ``topics = {title: text, ...}``; some Pythons give the texts as joined or dedented literals,
    which the parser has joined already.
    """
    tree = ast.parse(path.read_bytes())
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                constants = [n.value for n in ast.walk(value) if isinstance(n, ast.Constant)]
                texts = [constant for constant in constants if isinstance(constant, str)]
                if isinstance(key, ast.Constant) and texts:
                    found[str(key.value)] = texts[0]
    return [found[title] for title in sorted(found)]


def docstrings(source: bytes) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in the order of the text, dedented.

    Raises SyntaxError or ValueError where the module does not parse.
    """
    with warnings.catch_warnings():
        # Invalid escapes in other people's strings are not our user's business.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        # Definitions sit in bodies of statements; expressions, most of a tree, have none.
        for name in ("finalbody", "orelse", "handlers", "cases", "body"):
            children = getattr(node, name, None)
            if isinstance(children, list):
                todo.extend(reversed(children))


@dataclass
class Part:
    """What some files gave: texts in order, and counts of files, docstrings, and what was left out."""

    texts: list[str]
    counts: Counter[str]


def read_files(paths: list[Path]) -> Part:
    """Prose of the docstrings of some files, and counts of what was left out."""
    texts: list[str] = []
    counts: Counter[str] = Counter(files=len(paths))
    for path in paths:
        try:
            with _without_garbage_collection():
                found = [text for text in docstrings(path.read_bytes()) if len(text) >= prose.MIN_CHARS]
        except (SyntaxError, ValueError, OSError, RecursionError):
            counts["files_not_parsed"] += 1
            continue
        for text in found:
            counts["docstrings"] += 1
            cleaned = prose.clean(text)
            if prose.is_prose(cleaned):
                texts.append(cleaned)
            else:
                counts["left_out_not_prose"] += 1
    return Part(texts, counts)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A syntax tree is many small objects without cycles; looking for cycles in it took a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def helper_for(parts: list[list[Path]]) -> Helper[Part]:
    """Reads parts (lists of files) in another process while this one does something else."""

    def read(answer: dict[str, Any]) -> Part:
        return Part(answer["texts"], Counter(answer["counts"]))

    return Helper("firstlight.data.sources.docstrings", ([str(path) for path in part] for part in parts), read)


def main(jobs: TextIO, answers: TextIO) -> None:
    """Read one JSON list of paths a line; answer each with a line ``{"texts", "counts"}``."""
    for line in jobs:
        part = read_files([Path(path) for path in json.loads(line)])
        answers.write(json.dumps({"texts": part.texts, "counts": part.counts}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
