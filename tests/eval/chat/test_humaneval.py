"""Claims of eval/chat/humaneval.py: what of a reply is run, and that only programs that came to their end have passed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.errors import DataError
from firstlight.eval.chat.humaneval import humaneval, passes_tests, program_of

PROMPT = (
    'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n'
)
TEST = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
WHOLE = "def total(xs: List[int]) -> int:\n    return helper(sum(xs))\n"
ROW = {"task_id": "x", "prompt": PROMPT, "test": TEST, "entry_point": "total"}


@pytest.mark.parametrize(
    "reply",
    [WHOLE, f"```python\n{WHOLE}```", f"Here it is:\n```\n{WHOLE}\n```\nIt adds up.\n```\nmore\n```", f"```py\n{WHOLE}",
     "    return sum(xs)\n", "```python\n    return sum(xs)\n```"],
    ids=["bare", "fenced", "first block", "block that never closes", "body", "fenced body"],
)  # fmt: skip
def test_a_right_reply_passes(reply: str) -> None:
    program = program_of(reply, PROMPT, "total")
    assert program is not None
    names: dict = {}
    exec(f"{program}\n{TEST}\ncheck(total)", names)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I do not know.",
        "def other(xs):\n    return 1",
        "```python\n```",
        "def total(xs:\n",
        "\0",
        '    """Sum."""\n',
    ],
)
def test_a_reply_without_the_function_is_not_run(reply: str) -> None:
    [item] = humaneval([("f:0", ROW)], passes=lambda program: pytest.fail("it was run")).items
    assert item.grade is not None
    grade = item.grade(reply)
    assert (grade.is_right, grade.has_format) == (False, False)


def test_the_prompt_asks_for_the_whole_function() -> None:
    [item] = humaneval([("f:0", ROW)], passes=lambda program: True).items
    assert item.messages[0].text == (
        f"Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{PROMPT}```"
    )
    with pytest.raises(DataError, match="f:9"):
        humaneval([("f:9", {"prompt": "x"})], passes=lambda program: True)


CHEATS = {
    "wrong": "    return 1\n",
    "leaves with 0": "    import sys; sys.exit(0)\n",
    "leaves at once": "    import os; os._exit(0)\n",
    "raises": "    raise ValueError\n",
    "prints": "    print('ok'); return 0\n",
    "leaves before": "import sys\ndef total(xs): return 0\nsys.exit(0)\n",
}


@pytest.mark.parametrize("reply", CHEATS.values(), ids=CHEATS.keys())
def test_only_a_program_that_comes_to_its_end_has_passed(reply: str) -> None:
    [item] = humaneval([("f:0", ROW)]).items
    assert item.grade is not None
    grade = item.grade(reply)
    assert (grade.is_right, grade.has_format) == (False, True)


def test_a_right_program_passes_and_one_that_prints_as_well() -> None:
    [item] = humaneval([("f:0", ROW)]).items
    assert item.grade is not None
    assert item.grade(WHOLE).is_right
    assert item.grade("    print('é' * 10)\n    return sum(xs)").is_right


def real_rows(shared_data: Path) -> list[dict]:
    return [json.loads(line) for line in (shared_data / "chat/humaneval.jsonl").read_text().split("\n") if line]


def fenced(row: dict) -> str:
    return f"```python\n{row['prompt']}{row['canonical_solution']}```"


def test_some_published_solutions_pass_and_broken_ones_fail(shared_data: Path) -> None:
    rows = real_rows(shared_data)
    assert len(rows) == 164
    # With a helper in the prompt (32, 38), with hashlib (162), and two plain ones.
    for number in (0, 32, 38, 162):
        [item] = humaneval([("f", rows[number])]).items
        assert item.grade is not None
        assert item.grade(fenced(rows[number])).is_right
        assert item.grade(rows[number]["canonical_solution"]).is_right
        broken = rows[number]["canonical_solution"] + "    return None\n"
        assert not item.grade(broken.replace("return", "pass; return 12345;", 1)).is_right


def test_every_published_solution_is_found_in_its_reply(shared_data: Path) -> None:
    for row in real_rows(shared_data):
        for reply in (fenced(row), row["canonical_solution"]):
            program = program_of(reply, row["prompt"], row["entry_point"])
            assert program is not None
            assert row["canonical_solution"] in program


@pytest.mark.slow
def test_all_164_published_solutions_pass(shared_data: Path) -> None:
    task = humaneval([(row["task_id"], row) for row in real_rows(shared_data)])
    failed = [
        item.where
        for item, row in zip(task.items, real_rows(shared_data), strict=True)
        if item.grade is None or not item.grade(fenced(row)).is_right
    ]
    assert failed == []


def test_a_program_that_never_ends_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from firstlight.eval.chat import humaneval as module
    from firstlight.eval.sandbox.program import Limits

    monkeypatch.setattr(module, "LIMITS", Limits(wall_s=0.3))
    assert not passes_tests("while True: pass")
