"""Claims of eval/chat/answers.py: letters are those of a plain forward pass, answers those of the engine alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from firstlight.eval.chat import answers
from firstlight.eval.chat.answers import Asker, Sampling, seed_of
from firstlight.eval.chat.task import ChatTask, Grade, Item, choice_item
from firstlight.infer.batch import Completion, Request
from firstlight.infer.engine import generate
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, render_prompt

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
SPECIAL = TOKENIZER.special_ids


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.set_num_threads(1)
    config = GPTConfig(TOKENIZER.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, max_seq_len=128)
    made = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=3)
    with torch.no_grad():
        # A fresh model says the same whatever it is asked: its head starts near zero.
        generator = torch.Generator().manual_seed(1)
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def asker(model: GPT, run: Callable[[str], str] | None = None, **sampling) -> Asker:
    return Asker(model, TOKENIZER, sampling=Sampling(**sampling), run_python=run)


def choices(num: int) -> tuple[Item, ...]:
    words = ["ant", "bee", "cow", "dog", "elk"]
    return tuple(
        choice_item(f"Which is number {i}?", words[: 2 + i % 4], i % 2, where=str(i), group="g") for i in range(num)
    )


def open_items(num: int, grade: Callable[[str], Grade] = lambda text: Grade(False, False)) -> tuple[Item, ...]:
    return tuple(Item((Message.of("user", f"say {i * i}"),), "x", str(i), grade=grade) for i in range(num))


def test_the_letter_is_the_one_with_the_highest_logit_of_a_plain_pass(model: GPT) -> None:
    task = ChatTask("c", "categorical", choices(24))
    records = asker(model).ask(task, task.items, list(range(24)))
    chosen = []
    for item, record in zip(task.items, records, strict=True):
        ids = torch.tensor([render_prompt(item.messages, TOKENIZER)])
        with torch.no_grad():
            logits_V = model(ids)[0, -1]
        letters = [logits_V[ord("A") + i].item() for i in range(item.num_choices)]
        chosen.append(letters.index(max(letters)))
        assert record["choice"] == chosen[-1]
        assert record["correct"] == ("ABCDE"[chosen[-1]] == item.answer)
        assert record["margin"] == pytest.approx(sorted(letters)[-1] - sorted(letters)[-2], abs=1e-4)
    assert len(set(chosen)) > 1, "a model that always says the same shows little"


def test_answers_are_those_of_the_engine_alone(model: GPT) -> None:
    task = ChatTask("g", "generative", open_items(7), max_new_tokens=12)
    records = asker(model, max_rows=3).ask(task, task.items, [4, 2, 6, 0, 1])
    assert [record["index"] for record in records] == [4, 2, 6, 0, 1]
    stops = [
        SPECIAL[name]
        for name in ("<|assistant_end|>", "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>")
    ]
    for record in records:
        prompt = render_prompt(task.items[record["index"]].messages, TOKENIZER)
        alone = generate(model, prompt, max_new_tokens=12, temperature=0.0, stop_ids=stops)
        ids = [step[0] for step in alone]
        assert record["answer"] == TOKENIZER.decode(ids)
        expected = {"max_new_tokens": "max_new_tokens", "context_full": "context_full"}.get(
            alone.finish_reasons[0] or "", "end_token" if ids[-1] == SPECIAL["<|assistant_end|>"] else "other_token"
        )
        assert expected in record["marks"]


def completed(*ids: int, reason: str = "stop_id") -> Completion:
    return Completion(list(ids), [0.0] * len(ids), [False] * len(ids), reason)  # pyrefly: ignore


def test_a_grade_is_of_the_text_without_calls_and_outputs(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def grade(text: str) -> Grade:
        seen.append(text)
        return Grade(text == "12", "1" in text)

    call = [SPECIAL["<|python_start|>"], *b"3*4", SPECIAL["<|python_end|>"], SPECIAL["<|output_start|>"], *b"12",
            SPECIAL["<|output_end|>"]]  # fmt: skip
    canned = [
        completed(*call, *b"12", SPECIAL["<|assistant_end|>"]),
        completed(*b"1", SPECIAL["<|user_start|>"]),
        completed(*b"7", reason="max_new_tokens"),
        completed(*b"12", reason="context_full"),
    ]
    requests: list[Request] = []

    def complete(model: GPT, asked: list[Request], **more: object) -> list[Completion]:
        requests.extend(asked)
        return canned

    monkeypatch.setattr(answers, "complete", complete)
    ran: list[str] = []
    task = ChatTask("g", "generative", open_items(4, grade), max_new_tokens=9)
    records = asker(model, run=lambda code: ran.append(code) or "out", temperature=0.5, seed=8).ask(
        task, task.items, [0, 1, 2, 3]
    )
    assert sorted(seen) == ["1", "12", "12", "7"]
    assert [record["correct"] for record in records] == [True, False, False, True]
    assert [record["marks"] for record in records] == [
        ["end_token", "format"], ["format", "other_token"], ["max_new_tokens"], ["context_full", "format"],
    ]  # fmt: skip
    assert "<|" not in records[2]["answer"]
    assert {request.max_new_tokens for request in requests} == {9}
    assert [request.seed for request in requests] == [seed_of(8, "g", i) for i in range(4)]
    assert len({request.seed for request in requests}) == 4
    tool = requests[0].tool
    assert tool is not None
    made = tool()
    forced = [made.after(i) for i in (SPECIAL["<|python_start|>"], *b"1+1", SPECIAL["<|python_end|>"])]
    assert ran == ["1+1"]
    assert forced[-1] == [SPECIAL["<|output_start|>"], *b"out", SPECIAL["<|output_end|>"]]


def test_a_long_question_keeps_its_beginning_marks_and_its_end_and_is_counted(model: GPT) -> None:
    long = choice_item("x" * 500, ["a", "b"], 0, where="f")
    task = ChatTask("c", "categorical", (long, *choices(1)))
    records = asker(model).ask(task, task.items, [0, 1])
    assert ["cropped" in record["marks"] for record in records] == [True, False]
    prompt, marks = asker(model)._fitting(long, 1)
    whole = render_prompt(long.messages, TOKENIZER)
    assert (len(prompt), marks) == (127, {"cropped"})
    assert prompt[:2] == [SPECIAL["<|bos|>"], SPECIAL["<|user_start|>"]]
    assert prompt[2:] == whole[-125:]
    # However long an answer may be, half of the context is for the question.
    assert len(asker(model)._fitting(long, 1000)[0]) == 64


def test_an_answer_may_be_shorter_than_its_task_says(model: GPT) -> None:
    task = ChatTask("g", "generative", open_items(1), max_new_tokens=30)
    [record] = asker(model, max_new_tokens=2).ask(task, task.items, [0])
    assert len(record["answer"].encode()) <= 2 * 20
    assert asker(model).ask(task, task.items, []) == []
