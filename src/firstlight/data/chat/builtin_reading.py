"""Functions, classes and words out of Python's files: parsed, never imported.

Also a program, ``python -m firstlight.data.chat.builtin_reading``, which is how a second process reads: it needs nothing
of the program that started it, whichever way it was started.
"""

from __future__ import annotations

import ast
import gc
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from firstlight.data.chat.builtin_facts import Facts, facts_of
from firstlight.data.chat.builtin_words import words_in
from firstlight.data.sources.base import Progress
from firstlight.data.sources.helper import Helper
from firstlight.runtime import environment

FILES_AT_ONCE = 64
RENAMED = {"_pydecimal": "decimal", "_pyio": "io", "_collections_abc": "collections.abc", "posixpath": "os.path"}
"""Modules of the standard library that users know by another name."""
SKIPPED_MODULES = frozenset(["ntpath", "antigravity", "this", "lib2to3", "idlelib", "ensurepip"])


@dataclass(frozen=True)
class Entry:
    """One documented function or class: ``name`` of ``module``, as a user would call them, and its facts."""

    name: str
    module: str
    is_class: bool
    facts: Facts


@dataclass
class Reading:
    """What some files gave, in their order. words: in how many docstrings each word is."""

    entries: list[Entry] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Reading) -> None:
        """Append what other files gave."""
        self.entries += other.entries
        self.words.update(other.words)
        self.counts.update(other.counts)


def module_name(package: str, path: str) -> str | None:
    """The name a user knows a file of a package by, or None where it is private; ``path`` has ``/`` and no root.

    Of the standard library it is the module, of other packages the package.
    """
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts = parts[:-1]
    if package != "stdlib":
        # What numpy offers is defined in private files.
        is_private = package != "numpy" and any(part.startswith("_") for part in parts)
        return None if is_private else package
    if not parts or parts[0] in SKIPPED_MODULES:
        return None
    parts[0] = RENAMED.get(parts[0], parts[0])
    return None if any(part.startswith("_") for part in parts) else ".".join(parts)


def definitions(tree: ast.Module) -> Iterator[tuple[str, bool, str]]:
    """(name, whether it is a class, docstring) of the public functions, classes and methods of a module."""
    todo: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(tree.body)]
    while todo:
        prefix, node = todo.pop()
        if isinstance(node, ast.If | ast.Try):
            todo += [(prefix, each) for each in reversed([*node.body, *node.orelse])]
            continue
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text:
            yield prefix + node.name, isinstance(node, ast.ClassDef), text
        if isinstance(node, ast.ClassDef) and not prefix:
            todo += [(f"{node.name}.", each) for each in reversed(node.body)]


def read_files(jobs: list[tuple[str, str, str]]) -> Reading:
    """Entries and words of some files, each (package, path inside it, path on disk)."""
    reading = Reading(counts=Counter(files=len(jobs)))
    was_on = gc.isenabled()
    gc.disable()  # a syntax tree has no cycles; looking for some takes a quarter of the time
    try:
        for package, inside, path in jobs:
            module = module_name(package, inside)
            if module is None:
                reading.counts["files_private"] += 1
                continue
            try:
                source = Path(path).read_bytes()
                if b'"""' not in source and b"'''" not in source:
                    reading.counts["files_without_docstrings"] += 1
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(source)
            except (SyntaxError, ValueError, OSError, RecursionError):
                reading.counts["files_not_parsed"] += 1
                continue
            for name, is_class, text in definitions(tree):
                reading.counts["docstrings"] += 1
                reading.words.update(sorted(set(words_in(text))))
                facts = facts_of(text)
                if facts != Facts():
                    reading.entries.append(Entry(name, module, is_class, facts))
    finally:
        if was_on:
            gc.enable()
    return reading


def read_all(files: list[tuple[str, str, str]], progress: Progress | None) -> Reading:
    """All files in their order. Another process reads every second part where there are two CPUs."""
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    helper = (
        Helper("firstlight.data.chat.builtin_reading", parts[1::2], _reading)
        if environment.num_usable_cpus() > 1
        else None
    )
    done: dict[int, Reading] = {}
    for i, part in enumerate(parts):
        if helper is None or i % 2 == 0:
            done[i] = read_files(part)
            if progress is not None:
                so_far = min(len(files), (2 if helper else 1) * sum(each.counts["files"] for each in done.values()))
                progress("reading functions and words for builtin-chat", so_far, len(files))
    if helper is not None:
        done.update({2 * i + 1: reading for i, reading in enumerate(helper.results())})
    whole = Reading()
    for i, part in enumerate(parts):
        # A helper that ended early (no memory, a signal) costs time, not text.
        whole.add(done[i] if i in done else read_files(part))
    return whole


def _reading(answer: dict[str, Any]) -> Reading:
    entries = [Entry(n, m, c, Facts.from_json(f)) for n, m, c, f in answer["entries"]]
    return Reading(entries, Counter(answer["words"]), Counter(answer["counts"]))


def main(jobs: TextIO, answers: TextIO) -> None:
    """Read one JSON list of files a line; answer each with a line ``{"entries", "words", "counts"}``."""
    for line in jobs:
        reading = read_files([(package, inside, path) for package, inside, path in json.loads(line)])
        entries = [(e.name, e.module, e.is_class, e.facts.to_json()) for e in reading.entries]
        answers.write(json.dumps({"entries": entries, "words": reading.words, "counts": reading.counts}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
