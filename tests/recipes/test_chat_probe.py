"""Claims of recipes/chat_probe.py: when it is due, what its row holds, and that a budget or a stop ends it."""

from __future__ import annotations

import pytest
import torch

from firstlight.eval.chat.task import ChatTask, Grade, Item
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.recipes.chat_eval import evaluate_chat
from firstlight.recipes.chat_probe import ChatProbe
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message
from firstlight.train.guard import Dropped
from firstlight.train.probing import Budget

CPU = Runtime(device=torch.device("cpu"))
TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
ITEMS = tuple(
    Item((Message.of("user", f"say {i}"),), "x", str(i), grade=lambda text: Grade(len(text) > 1, True))
    for i in range(80)
)
TASK = ChatTask("words", "generative", ITEMS, 3)


def make(*, every: int = 4, stop=lambda: False, tasks=(TASK,), most: int | None = 6) -> tuple[ChatProbe, list[str]]:
    beats: list[str] = []
    probe = ChatProbe(
        tasks, TOKENIZER, every=every, max_per_task=most, console=Console(is_main=False), runtime=CPU, beat=beats.append,
        should_stop=stop, budget=Budget(0),
    )  # fmt: skip
    return probe, beats


@pytest.fixture(scope="module")
def model() -> GPT:
    return build_gpt(GPTConfig.from_depth(1, vocab_size=TOKENIZER.vocab_size, max_seq_len=64), seed=1)


def test_it_is_due_every_n_steps_and_leaves_the_end_to_the_recipe() -> None:
    probe, _ = make()
    assert [step for step in range(9) if probe.due(step, is_last=step == 8)] == [4]
    assert not make(every=0)[0].due(4, is_last=False)
    assert not make(tasks=())[0].due(4, is_last=False)


def test_its_row_is_what_an_evaluation_gives(model: GPT) -> None:
    probe, beats = make()
    row = probe.measure(model, 4, is_over=lambda: False)
    direct = evaluate_chat(model, TOKENIZER, [TASK], runtime=CPU, console=Console(is_main=False), max_per_task=6)
    assert row["accuracy"] == {"words": direct.tasks[0].accuracy}
    assert row["format_rate"] == {"words": 1.0}
    assert (row["num_questions"], row["max_per_task"]) == (6, 6)
    assert row["mean_centered"] == direct.mean
    assert "tasks" not in row
    assert any("6 of 6" in beat for beat in beats)


def test_over_its_budget_there_is_no_score(model: GPT) -> None:
    row = make(most=None)[0].measure(model, 4, is_over=lambda: True)
    assert row == {"cut": "by its budget", "max_per_task": None}


def test_a_stop_drops_it(model: GPT) -> None:
    with pytest.raises(Dropped):
        make(most=None, stop=lambda: True)[0].measure(model, 4, is_over=lambda: False)
