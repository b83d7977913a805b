"""The page of results is what the JSON files give, and the form of these files is checked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = load("results")


def result(**changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "speed",
        "title": "Speed of it",
        "command": "python benchmarks/speed.py",
        "date": "2026-01-02",
        "machine": {"cpu": "Chip 9", "cores": 2, "memory_gib": 24, "torch": "2.13", "python": "3.11"},
        "columns": ["case", "rows/s", "ratio"],
        "rows": [["ours", 12345, "2.1x"], ["GPU", None, None]],
        "notes": ["One note."],
        "figures": {"rows_per_s": 12345.678},
        **changes,
    }


def test_the_page_is_what_the_files_give() -> None:
    assert results.PAGE.read_text(encoding="utf-8") == results.page(results.load_all()), (
        "run: python benchmarks/results.py"
    )


def test_every_file_names_its_benchmark_and_a_script_that_exists() -> None:
    for path in sorted(results.RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        results.check(found)
        assert found["benchmark"] == path.stem
        words = found["command"].split()
        if words[0] == "python":
            assert (FOLDER.parent / words[1]).exists(), f"{path.name}: {found['command']}"


def test_a_section_has_title_command_date_machine_table_and_notes() -> None:
    assert results.section(result()) == (
        "## Speed of it\n"
        "\n"
        "`python benchmarks/speed.py`\n"
        "\n"
        "2026-01-02; 2 cores of Chip 9, 24 GiB, torch 2.13, python 3.11.\n"
        "\n"
        "| case | rows/s | ratio |\n"
        "|---|---:|---:|\n"
        "| ours | 12,345 | 2.1x |\n"
        "| GPU | not measured | not measured |\n"
        "\n"
        "- One note.\n"
    )
    assert "Not measured." in results.section(result(rows=[]))


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    path = results.write_result(
        "speed",
        title="Speed of it",
        command="python benchmarks/speed.py",
        columns=["case", "a | b"],
        rows=[["ours, \u00b1", 1.5], ["x|y", None]],
        notes=["n"],
        figures={"inner": {"a": [1, 2]}},
        path=tmp_path / "deep" / "speed.json",
    )
    (found,) = results.load_all(path.parent)
    assert found["rows"] == [["ours, \u00b1", 1.5], ["x|y", None]]
    assert found["figures"] == {"inner": {"a": [1, 2]}}
    assert "| x\\|y | not measured |" in results.page([found])


def test_the_machine_is_described_without_names_of_hosts_and_paths() -> None:
    import getpass
    import socket

    facts = results.machine()
    assert facts["cores"] >= 1
    text = json.dumps(facts)
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text.split('"')
    assert str(Path.home()) not in text


@pytest.mark.parametrize(
    ("changes", "said"), [({"rows": [["a", 1]]}, "2 cells for 3 columns"), ({"date": ...}, "no date")]
)
def test_a_result_of_another_form_is_refused(changes: dict[str, Any], said: str) -> None:
    wrong = {key: value for key, value in result(**changes).items() if value is not ...}
    with pytest.raises(ValueError, match=said):
        results.check(wrong)
