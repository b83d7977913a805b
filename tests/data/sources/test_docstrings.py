"""Python files are read for their docstrings, here or in another process, and nothing in them is run."""

from __future__ import annotations

from firstlight.data.sources import docstrings
from firstlight.data.sources.docstrings import helper_for, read_files

LONG = "This is a sentence that is long enough to be in the text, and it is about nothing at all. " * 3


def test_docstrings_are_those_of_modules_classes_and_functions_wherever_they_stand():
    source = b'''"""module"""
if True:
    class A:
        """class

            indented
        not"""
        x = """no docstring"""
        async def f(self):
            """method"""
            def g():
                "inner"
try:
    pass
except ImportError:
    def h():
        """fallback"""
f"""not one"""
'''
    assert list(docstrings.docstrings(source)) == [
        "module",
        "class\n\n    indented\nnot",
        "method",
        "inner",
        "fallback",
    ]


def test_topics_are_read_from_any_way_of_writing_the_dictionary(tmp_path):
    path = tmp_path / "topics.py"
    path.write_text("raise SystemExit\ntopics = {'b': 'two ' 'lines', 'a': f('one'), 'c': 3}\n")
    assert docstrings.topics(path) == ["one", "two lines"]


def write_modules(folder):
    for i in range(4):
        (folder / f"m{i}.py").write_text(f'"""Module {i}. {LONG}"""\ndef f():\n    """{"x = [1]; " * 40}"""\n')
    (folder / "m3.py").write_text("def broken(:\n")
    return sorted(folder.glob("*.py"))


def test_long_prose_is_kept_and_the_rest_is_counted(tmp_path):
    part = read_files(write_modules(tmp_path))
    assert part.texts == [f"Module {i}. {LONG}".strip() for i in range(3)]
    assert part.counts == {"files": 4, "docstrings": 6, "left_out_not_prose": 3, "files_not_parsed": 1}


def test_a_helper_process_finds_the_same(tmp_path):
    files = write_modules(tmp_path)
    assert helper_for([files[:1], files[1:]]).results() == [read_files(files[:1]), read_files(files[1:])]


def test_a_helper_that_cannot_start_gives_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings.sys, "executable", str(tmp_path / "no_python"))
    assert helper_for([[tmp_path / "x.py"]]).results() == []
