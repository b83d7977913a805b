"""Claims of cli/chat_eval.py, through the command line that users type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.cli.main import run

CPU = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(8)]
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"query": f"Question: {i}?", "choices": ["a", "b", "c", "d"], "gold": i % 4} for i in range(8)]
    (folder / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_run_is_asked_and_its_answers_are_kept(make_tiny_run, data: str, capsys) -> None:
    made = make_tiny_run(context=128)
    arguments = ["eval", "chat", "tiny", "--tasks", "gsm8k,arc_easy", "--data", data, "--max-new-tokens", "5", *CPU]
    assert run([*arguments, "--json", "--max-per-task", "6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["step"], found["max_per_task"], found["num_resumed"]) == ("tiny", 3, 6, 0)
    assert [(task["task"], task["num_items"]) for task in found["tasks"]] == [("gsm8k", 6), ("arc_easy", 6)]
    assert Path(found["result"]).parent == made.path / "chat"
    assert run([*arguments, "--compare", "tiny"]) == 0
    captured = capsys.readouterr()
    assert "6 decisions were there already" in captured.out
    assert "gsm8k: tiny (step 3) against tiny (step 3): no difference at all" in captured.out
    assert "mean over 2 tasks" in captured.out
    assert run([*arguments, "--compare", "tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [gain["name"] for gain in found["gains"]] == ["gsm8k", "arc_easy", "gsm8k, form", "mean over 2 tasks"]
    assert found["compared_with"]["num_resumed"] == 16


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["unknown", "--tasks", "gsm8k"], 2, "unknown"),
        (["tiny", "--tasks", "gsm9k"], 2, "did you mean 'gsm8k'"),
        (["tiny", "--tasks", ","], 2, "names no task"),
        (["tiny", "--max-per-task", "0", "--max-rows", "0", "--temperature", "-1"], 2, "3 things are wrong"),
        (["tiny", "--compare", "tiny", "--max-per-task", "1"], 2, "at least 2"),
        (["tiny", "--compare", "other", "--tasks", "gsm8k"], 2, "other"),
        (["tiny", "--tasks", "mmlu", "--data", "DATA"], 3, "mmlu has no file"),
        (["tiny", "--tasks", "gsm8k", "--data", "nowhere"], 2, "--data nowhere is not a folder"),
        (["tiny", "--tasks", "gsm8k", "--data", "DATA", "--checkpoint", "9"], 4, "kept are steps 3"),
    ],
)
def test_mistakes_have_their_message_and_exit_code(
    make_tiny_run, data: str, capsys, arguments: list[str], code: int, message: str
) -> None:
    make_tiny_run()
    assert run(["eval", "chat", *[data if a == "DATA" else a for a in arguments], "--device", "cpu"]) == code
    assert message in capsys.readouterr().err
