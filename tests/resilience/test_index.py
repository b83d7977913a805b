"""The table of README.md has every row, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROW = re.compile(r"^\| (R[0-9]+) \|(.*)\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def table() -> dict[str, str]:
    found = ROW.findall((HERE / "README.md").read_text(encoding="utf-8"))
    assert len(found) == len(dict(found)), "a row is there twice"
    return dict(found)


def test_every_row_is_there_with_tests_that_exist() -> None:
    rows = table()
    assert list(rows) == [f"R{number}" for number in range(1, 30)]
    for row, text in rows.items():
        tests = TEST.findall(text)
        assert tests, f"{row} names no test"
        for file, name in tests:
            assert name.startswith("test_")
            assert name in functions_of(ROOT / file), f"{row}: there is no {file}::{name}"


def test_every_test_of_this_folder_is_in_the_table_under_the_rows_of_its_name() -> None:
    rows = table()
    for path in sorted(HERE.glob("test_*.py")):
        for name in sorted(functions_of(path)):
            if not name.startswith("test_") or path.name == Path(__file__).name:
                continue
            begin = re.match(r"test_((?:r\d+_)+)", name)
            assert begin, f"{path.name}::{name} does not begin with its row"
            for row in begin[1].upper().strip("_").split("_"):
                assert f"`tests/resilience/{path.name}::{name}`" in rows[row], f"{name} is not in {row}"
