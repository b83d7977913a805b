"""Prompts and the choice of examples shown, against templates rendered by Jinja and strings made by hand."""

from __future__ import annotations

import random
from pathlib import Path

import jinja2
import pytest

from firstlight.eval.core.bundle import Example, Task, read_bundle, read_examples
from firstlight.eval.core.prompts import fewshot_indices, ordered, render

PART = {
    "multiple_choice": "{{ e.text }}{{ d }}{{ e.options[e.gold] }}",
    "schema": "{{ e.options[e.gold] }}{{ d }}{{ e.text }}",
    "language_modeling": "{{ e.text | trim }}{{ d }}{{ e.options[0] }}",
}


def jinja_prompts(task: Task, shots: list[Example], example: Example) -> list[str]:
    """The same texts by another program: one template a prompt."""
    head = "{% for e in shots %}" + PART[task.kind] + "\n\n{% endfor %}"
    tails = {
        "multiple_choice": "{{ e.text }}{{ d }}{{ option }}",
        "schema": "{{ option }}{{ d }}{{ e.text }}",
        "language_modeling": "{{ e.text | trim }}{{ d }}{{ option }}",
    }
    template = jinja2.Environment(keep_trailing_newline=True).from_string(head + tails[task.kind])
    options = example.options if task.kind != "language_modeling" else ("", example.options[0])
    texts = [template.render(shots=shots, e=example, d=task.delimiter, option=option) for option in options]
    return [texts[0].strip(), texts[1]] if task.kind == "language_modeling" else texts


def task(kind: str, *, shots: int = 0, delimiter: str = " ") -> Task:
    return Task("t", kind, shots, delimiter, "t.jsonl", Path("t.jsonl"))  # pyrefly: ignore


HARD = [
    Example(text, options, i % 2)
    for i, (text, options) in enumerate([
        ("plain", ("a", "b")),
        (" blanks around \n", (" x ", "y\n")),
        ("{{ braces }} {% if %}", ("{# c #}", "<b>&amp;")),
        ("a\r\nb\u00a0", ("é🙂", "")),
        ("\n\nlines\n\n", ("\n", "\t")),
    ])
]  # fmt: skip


@pytest.mark.parametrize("kind", ["multiple_choice", "schema", "language_modeling"])
@pytest.mark.parametrize("delimiter", [" ", "\nAnswer: ", ""])
@pytest.mark.parametrize("shots", [0, 3])
def test_prompts_are_those_of_the_templates(kind: str, delimiter: str, shots: int):
    settings = task(kind, shots=shots, delimiter=delimiter)
    for i, example in enumerate(HARD):
        shown = [HARD[j] for j in fewshot_indices(i, num_examples=len(HARD), num_fewshot=shots)]
        assert render(settings, HARD, i) == jinja_prompts(settings, shown, example)


def test_a_prompt_made_by_hand():
    examples = [Example("1 + 1?", ("3", "2"), 1), Example("2 + 2?", ("4", "5"), 0)]
    assert render(task("multiple_choice", shots=1, delimiter="\nAnswer: "), examples, 0) == [
        "2 + 2?\nAnswer: 4\n\n1 + 1?\nAnswer: 3",
        "2 + 2?\nAnswer: 4\n\n1 + 1?\nAnswer: 2",
    ]
    examples = [Example(" The sky is ", ("blue",), 0), Example("Grass is", ("green",), 0)]
    assert render(task("language_modeling", shots=1), examples, 0) == [
        "Grass is green\n\nThe sky is",
        "Grass is green\n\nThe sky is blue",
    ]
    examples = [Example("it was small.", ("The cup", "The bag"), 1)]
    assert render(task("schema"), examples, 0) == ["The cup it was small.", "The bag it was small."]


def test_the_order_and_the_examples_shown_are_fixed():
    assert ordered(list("abcdefgh"), max_per_task=5) == list("adhcb")  # pyrefly: ignore
    # By hand: nine others, a generator seeded with 1234 + 4, its first three draws without replacement.
    others = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert fewshot_indices(4, num_examples=10, num_fewshot=3) == random.Random(1238).sample(others, 3) == [0, 8, 1]


def test_an_example_is_never_shown_before_itself():
    for i in range(20):
        shown = fewshot_indices(i, num_examples=20, num_fewshot=19)
        assert sorted(shown) == [j for j in range(20) if j != i]


def test_where_there_are_too_few_all_are_shown():
    assert sorted(fewshot_indices(1, num_examples=4, num_fewshot=10)) == [0, 2, 3]
    assert fewshot_indices(0, num_examples=1, num_fewshot=10) == []


def test_real_examples_give_the_prompts_of_the_templates(shared_data: Path):
    for settings in read_bundle(shared_data / "core").tasks:
        examples = ordered(read_examples(settings), max_per_task=30)
        for i in (0, 7, 29):
            shown = [examples[j] for j in fewshot_indices(i, num_examples=30, num_fewshot=settings.num_fewshot)]
            assert render(settings, examples, i) == jinja_prompts(settings, shown, examples[i])
