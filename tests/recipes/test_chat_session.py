"""Claims about a conversation with a model: what is kept, trimmed, saved and repeated. The model's answers are checked against
`infer.engine.generate` on ids that are written out here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.infer.engine import generate
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.recipes.chat_session import ChatSession, Settings, to_json
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, parse_messages

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
BOS, USER_START, USER_END, START, END = range(256, 261)
CONTEXT = 80


@pytest.fixture(scope="module")
def model() -> GPT:
    """Random; greedy it writes ordinary ids only, so its answers do not end by themselves."""
    config = GPTConfig(TOKENIZER.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=CONTEXT)
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.5, generator=generator)
        model.lm_head.weight[256:] = 0.0
    return model


def new_session(model: GPT, *, system: str = "", **changes: object) -> ChatSession:
    settings = Settings(**{"temperature": 0.0, "max_new_tokens": 8, **changes})  # pyrefly: ignore
    return ChatSession(model, TOKENIZER, run=lambda code: "42", settings=settings, system=system)


def test_an_answer_is_the_models_and_both_are_kept(model: GPT) -> None:
    session = new_session(model, system="be kind")
    pieces: list[Part] = []
    reply = session.ask("hi", on_piece=pieces.append)
    prompt = [BOS, USER_START, *b"be kind\n\nhi", USER_END, START]
    stops = [BOS, USER_START, USER_END, START, END]
    expected = [i for (i,) in generate(model, prompt, max_new_tokens=8, temperature=0.0, stop_ids=stops)]
    assert (reply.num_tokens, reply.num_prompt_tokens) == (len(expected), len(prompt))
    assert reply.text == TOKENIZER.decode([i for i in expected if i < 256])
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == reply.text
    assert session.messages == [Message.of("user", "hi"), Message("assistant", reply.parts)]
    assert session.ask("and?").num_prompt_tokens > len(prompt) + 8 - 1


def test_the_same_seed_repeats_a_conversation_and_a_second_try_differs(model: GPT) -> None:
    def conversation() -> list[str]:
        session = new_session(model, temperature=1.0, seed=5)
        return [session.ask(text).text for text in ("a", "b")]

    first = conversation()
    assert conversation() == first
    session = new_session(model, temperature=1.0, seed=5)
    session.ask("a")
    assert session.undo() == "a"
    assert session.messages == []
    assert session.ask("a").text != first[0]
    session.reset()
    assert session.messages == []
    assert session.undo() is None


def test_old_turns_are_left_out_when_the_context_is_full(model: GPT) -> None:
    session = new_session(model)
    dropped = [session.ask("x" * 10).num_dropped_turns for _ in range(9)]
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] > 3
    assert len(session.messages) == 18, "what was left out is still part of the conversation"


@pytest.mark.parametrize(
    ("text", "message"), [("", "the message is empty"), (" \n", "empty"), ("x" * 99, "103 tokens")]
)
def test_messages_that_cannot_be_answered_are_refused_and_not_kept(model: GPT, text: str, message: str) -> None:
    session = new_session(model)
    session.ask("hello")
    with pytest.raises(ConfigError, match=message):
        session.ask(text)
    assert len(session.messages) == 2


def test_a_stopped_answer_is_kept_as_far_as_it_came(model: GPT) -> None:
    session = new_session(model, max_new_tokens=30)
    steps: list[int] = []
    whole = new_session(model, max_new_tokens=30).ask("hi")
    reply = session.ask("hi", should_stop=lambda: len(steps) >= 3 or steps.append(0) is not None)
    assert reply.finish_reason == "stopped"
    assert reply.num_tokens == 3 < whole.num_tokens
    assert whole.text.startswith(reply.text.rstrip("\ufffd"))
    assert session.messages[-1].parts == reply.parts
    assert session.ask("go on").num_tokens > 0, "the row is free again"


def test_an_answer_that_is_stopped_before_it_began_leaves_no_trace(model: GPT) -> None:
    session = new_session(model)
    assert session.ask("hi", should_stop=lambda: True).finish_reason == "stopped"
    assert session.messages == []


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature -1"):
        Settings(temperature=-1)
    with pytest.raises(ConfigError, match="max_new_tokens 0"):
        Settings(max_new_tokens=0)


def test_a_saved_conversation_is_read_back_by_training(model: GPT, tmp_path: Path) -> None:
    session = new_session(model, system="be kind")
    path = tmp_path / "talk.jsonl"
    with pytest.raises(ConfigError, match="nothing to save"):
        session.save(path)
    parts = (Part("text", "né "), Part("python", "6*7"), Part("output", "42"), Part("text", "\n"))
    session.messages = [Message.of("user", "q"), Message("assistant", parts)]
    session.save(path)
    (line,) = path.read_text(encoding="utf-8").splitlines()
    messages = parse_messages(json.loads(line)["messages"], where="the file")
    assert messages == (Message.of("system", "be kind"), *session.messages)
    with pytest.raises(ConfigError, match="exists"):
        session.save(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        session.save(tmp_path / "no" / "talk.jsonl")
    assert to_json(messages)[2]["content"][1] == {"type": "python", "text": "6*7"}  # pyrefly: ignore
