"""A made-up bundle of CORE tasks: three small tasks, one of each kind."""

from __future__ import annotations

import json
import random
from pathlib import Path

from words import WORDS

YAML = """icl_tasks:
- label: choose
  dataset_uri: a/choose.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
- label: refer
  dataset_uri: a/refer.jsonl
  num_fewshot: [0]
  icl_task_type: schema
- label: finish
  dataset_uri: b/finish.jsonl
  num_fewshot: [1]
  icl_task_type: language_modeling
"""

CSV = "Eval Task,Random baseline,Random baseline (DCLM v2)\nchoose,25,30\nrefer,50,50\nfinish,0,0\n"


def sentence(draw: random.Random, num_words: int) -> str:
    return " ".join(draw.choices(WORDS, k=num_words))


def make_bundle(path: Path, *, num_examples: int = 12, num_words: int = 3) -> Path:
    """Write the bundle into a new folder and return it."""
    draw = random.Random(0)
    (path / "eval_data/a").mkdir(parents=True)
    (path / "eval_data/b").mkdir()
    (path / "core.yaml").write_text(YAML)
    (path / "eval_meta_data.csv").write_text(CSV)

    def write(uri: str, rows: list[dict]) -> None:
        (path / "eval_data" / uri).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def some(num_words: int) -> str:
        return sentence(draw, num_words)

    numbers = range(num_examples)
    write(
        "a/choose.jsonl",
        [{"query": some(num_words), "choices": [some(2) for _ in range(4)], "gold": i % 4} for i in numbers],
    )
    write("a/refer.jsonl", [
        {"context_options": [f"{(left := some(2))} {some(1)}", f"{left} {some(1)}"], "continuation": some(2), "gold": i % 2}
        for i in numbers
    ])  # fmt: skip
    write("b/finish.jsonl", [{"context": some(num_words) + " ", "continuation": some(1)} for i in numbers])
    return path
