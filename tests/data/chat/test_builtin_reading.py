"""Functions and words out of files: named as users know them, the private left out, a helper process with the same result."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap

import pytest

from firstlight.data.chat import builtin_reading
from firstlight.data.chat.builtin_facts import Facts
from firstlight.data.chat.builtin_reading import definitions, module_name, read_all, read_files
from firstlight.runtime import environment

SOURCE = '''
"""A module."""
def shown(): "Do what is shown."
def silent(): pass
def _hidden(): """Not for users."""
class Box:
    """Hold some things."""
    def open(self):
        """Open the box."""
        def inner(): """Not seen."""
    class Lid:
        """Cover the box."""
        def lift(self): """Too deep to be named."""
if True:
    async def waits(): """Wait for a while."""
else:
    def other(): """Be the other way."""
'''


def test_definitions():
    assert list(definitions(ast.parse(SOURCE))) == [
        ("shown", False, "Do what is shown."),
        ("Box", True, "Hold some things."),
        ("Box.open", False, "Open the box."),
        ("Box.Lid", True, "Cover the box."),
        ("waits", False, "Wait for a while."),
        ("other", False, "Be the other way."),
    ]


@pytest.mark.parametrize(
    ("package", "path", "name"),
    [
        ("stdlib", "random.py", "random"),
        ("stdlib", "json/__init__.py", "json"),
        ("stdlib", "email/message.py", "email.message"),
        ("stdlib", "posixpath.py", "os.path"),
        ("stdlib", "_pydecimal.py", "decimal"),
        ("stdlib", "_strptime.py", None),
        ("stdlib", "ntpath.py", None),
        ("numpy", "_core/fromnumeric.py", "numpy"),
        ("torch", "nn/modules/module.py", "torch"),
        ("torch", "_inductor/ir.py", None),
        ("sympy", "__init__.py", "sympy"),
    ],
)
def test_modules_are_named_as_users_know_them(package, path, name):
    assert module_name(package, path) == name


def test_what_is_read_is_what_python_shows_as_help():
    found = {entry.name: entry for entry in read_files([("stdlib", "textwrap.py", textwrap.__file__)]).entries}
    assert found["dedent"].module == "textwrap"
    assert {"TextWrapper", "wrap", "fill", "shorten", "dedent", "indent", "TextWrapper.wrap"} <= set(found)
    for name, entry in found.items():
        value = textwrap
        for part in name.split("."):
            value = getattr(value, part)
        assert entry.is_class == inspect.isclass(value)
        shown = " ".join((inspect.getdoc(value) or "").split())
        assert entry.facts.does.rstrip(".") in shown
    assert found["dedent"].facts == Facts(does="Remove any common leading whitespace from every line in `text`.")


def test_what_cannot_be_read_is_counted(tmp_path):
    (tmp_path / "bad.py").write_text('def f(:\n    """x"""')
    (tmp_path / "plain.py").write_text("x = 1\n")
    (tmp_path / "good.py").write_text('def f():\n    """Return the given thing. thing"""\n')
    names = ["bad.py", "plain.py", "good.py", "none.py", "_private.py"]
    reading = read_files([("stdlib", name, str(tmp_path / name)) for name in names])
    assert reading.counts == {
        "files": 5, "files_not_parsed": 2, "files_without_docstrings": 1, "files_private": 1, "docstrings": 1,
    }  # fmt: skip
    assert [entry.name for entry in reading.entries] == ["f"]
    # A word counts once for a docstring.
    assert reading.words == {"the": 1, "given": 1, "thing": 1}


def test_two_processes_read_what_one_reads(monkeypatch):
    names = ["textwrap.py", "random.py", "string.py", "shlex.py", "heapq.py", "bisect.py"]
    folder = textwrap.__file__.rsplit("/", 1)[0]
    files = [("stdlib", name, f"{folder}/{name}") for name in names]
    monkeypatch.setattr(builtin_reading, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(environment, "num_usable_cpus", lambda: 1)
    alone = read_all(files, None)
    monkeypatch.setattr(environment, "num_usable_cpus", lambda: 2)
    said = []
    together = read_all(files, lambda *each: said.append(each))
    assert together == alone
    assert len(alone.entries) > 30
    assert said[-1][1:] == (6, 6)


def test_a_helper_that_dies_costs_nothing_but_time(monkeypatch):
    files = [("stdlib", "textwrap.py", textwrap.__file__)] * 3
    monkeypatch.setattr(builtin_reading, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(environment, "num_usable_cpus", lambda: 2)
    monkeypatch.setattr(builtin_reading.sys, "executable", "/bin/false")
    whole = read_all(files, None)
    assert len(whole.entries) == 3 * len(read_files(files[:1]).entries)


def test_the_program_answers_line_by_line():
    class Lines(list):
        write = list.append

        def flush(self):
            pass

    answers = Lines()
    builtin_reading.main([json.dumps([["stdlib", "textwrap.py", textwrap.__file__]])], answers)
    assert len(answers) == 1
    assert set(json.loads(answers[0])) == {"entries", "words", "counts"}
