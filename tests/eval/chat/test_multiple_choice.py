"""Claims of eval/chat/multiple_choice.py: both forms of ARC are the same question; a row of another form is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from firstlight.errors import DataError
from firstlight.eval.chat.multiple_choice import arc, mmlu

OF_CORE = {"query": "Question: Which is hot?", "choices": ["ice", "fire", "snow"], "gold": 1}
OF_HUB = {
    "id": "x", "question": "Which is hot?", "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}  # fmt: skip


def test_the_two_forms_of_arc_ask_the_same() -> None:
    one, two = (arc("arc_easy", [("f:0", row)]) for row in (OF_CORE, OF_HUB))
    assert one.content_hash == two.content_hash
    [item] = one.items
    assert item.messages[0].text == "Which is hot?\nA. ice\nB. fire\nC. snow\nAnswer with the letter only."
    assert (item.answer, item.chance) == ("B", pytest.approx(1 / 3))


def test_mmlu_counts_by_subject() -> None:
    row = {"question": "2 + 2?", "choices": ["1", "2", "3", "4"], "answer": 3, "subject": "algebra"}
    [item] = mmlu([("f:0", row)]).items
    assert (item.answer, item.group, item.chance) == ("D", "algebra", 0.25)


@pytest.mark.parametrize(
    "row",
    [{}, [], "x", OF_CORE | {"gold": 3}, OF_CORE | {"gold": "x"}, OF_HUB | {"answerKey": "9"}, OF_HUB | {"choices": 1}],
)
def test_a_row_of_another_form_is_named(row: object) -> None:
    with pytest.raises(DataError, match="f:3"):
        arc("arc_easy", [("f:3", row)])
    with pytest.raises(DataError, match="f:3"):
        mmlu([("f:3", row)])


def test_real_rows(shared_data: Path) -> None:
    path = shared_data / "core/eval_data/world_knowledge/arc_easy.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    task = arc("arc_easy", [(str(i), row) for i, row in enumerate(rows)])
    assert len(task.items) == 2376
    for item, row in zip(task.items, rows, strict=True):
        lines = item.messages[0].text.split("\n")
        assert lines[-1 - len(row["choices"]) + "ABCD".index(item.answer)][3:] == row["choices"][row["gold"]]
    text = gzip.decompress((shared_data / "chat/mmlu_test.jsonl.gz").read_bytes()).decode()
    found = mmlu([(str(i), json.loads(line)) for i, line in enumerate(text.split("\n")[:300])])
    assert {item.chance for item in found.items} == {0.25}
