"""Claims about answers and histories. Expected parts and counts are written down by hand: the tokenizer has the 256 bytes
and the nine special tokens behind them."""

from __future__ import annotations

import random

import pytest

from firstlight.errors import ConfigError
from firstlight.infer import chat
from firstlight.infer.chat import PartStream, split_parts, stop_ids, trim_history
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, render, render_prompt

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
BOS, USER_START, USER_END, START, END, PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = range(256, 265)


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_an_answer_ends_at_its_end_and_where_another_turn_begins_but_not_at_the_tool() -> None:
    assert stop_ids(TOKENIZER) == {BOS, USER_START, USER_END, START, END}


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ([], []),
        ([END], []),
        ([*ids("hé"), END], [("text", "hé")]),
        (
            [*ids("a"), PYTHON_START, *ids("1+1"), PYTHON_END, OUTPUT_START, *ids("2"), OUTPUT_END, *ids("b"), END],
            [("text", "a"), ("python", "1+1"), ("output", "2"), ("text", "b")],
        ),
        ([PYTHON_START, *ids("1")], [("python", "1")]),
        ([PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END], [("python", ""), ("output", "")]),
        ([PYTHON_START, *ids("1"), PYTHON_START, *ids("2"), PYTHON_END], [("python", "1"), ("python", "2")]),
        ([PYTHON_END, *ids("a"), OUTPUT_END, *ids("b")], [("text", "ab")]),
        ([PYTHON_START, *ids("1"), OUTPUT_START, *ids("2")], [("python", "1"), ("output", "2")]),
        ([*ids("a"), 0xC3, PYTHON_START, *ids("1")], [("text", "a\ufffd"), ("python", "1")]),
        ([0xF0, 0x9F], [("text", "\ufffd")]),
    ],
)
def test_ids_become_parts(written: list[int], parts: list[tuple[str, str]]) -> None:
    assert [(part.kind, part.text) for part in split_parts(written, TOKENIZER)] == parts


def test_parts_of_a_rendered_answer_are_the_answer() -> None:
    parts = (Part("text", "né🐶 "), Part("python", "x = 1\nx"), Part("output", "1"), Part("text", "done"))
    document = render([Message.of("user", "q"), Message("assistant", parts)], TOKENIZER)
    answer = document.ids.tolist()
    assert split_parts(answer[answer.index(START) + 1 :], TOKENIZER) == parts


def test_pieces_as_they_come_are_whole_characters_and_join_to_the_parts() -> None:
    draw = random.Random(0)
    choices = [*ids("aé🐶\n"), *range(256, 265), 0xF0, 0x80]
    for _ in range(300):
        written = draw.choices(choices, k=draw.randint(0, 25))
        stream = PartStream(TOKENIZER)
        pieces = [piece for i in written for piece in stream.push(i)] + stream.flush()
        expected = split_parts(written, TOKENIZER)
        for kind in ("text", "python", "output"):
            assert "".join(p.text for p in pieces if p.kind == kind) == "".join(
                p.text for p in expected if p.kind == kind
            )
    stream = PartStream(TOKENIZER)
    assert [[p.text for p in stream.push(i)] for i in ids("é🐶")] == [[], ["é"], [], [], [], ["🐶"]]


def talk(num_turns: int, *, system: str = "") -> list[Message]:
    """Turns of 10 ids each: 3 + 3 bytes and four special ids; then a message of 3 bytes."""
    turns = [Message.of("system", system)] if system else []
    for i in range(num_turns):
        turns += [Message.of("user", f"q{i:02d}"), Message.of("assistant", f"a{i:02d}")]
    return [*turns, Message.of("user", "new")]


@pytest.mark.parametrize(
    ("context", "max_new_tokens", "dropped"),
    # 5 turns: BOS + 50 + 5 + 1 = 57 ids. The last new token needs no place.
    [(200, 100, 0), (66, 10, 0), (65, 10, 1), (56, 10, 1), (55, 10, 2), (16, 10, 5), (1000, 944, 0), (100, 1000, 0)],
)
def test_oldest_turns_are_dropped_whole(context: int, max_new_tokens: int, dropped: int) -> None:
    # 16: a quarter of it is the least room for an answer.
    kept, num_dropped = trim_history(talk(5), TOKENIZER, context=context, max_new_tokens=max_new_tokens)
    assert num_dropped == dropped
    assert kept == talk(5)[2 * dropped :]
    prompt = render_prompt(kept, TOKENIZER)
    assert prompt[0] == BOS
    assert len(prompt) + min(max_new_tokens, context // 4) <= context + 1


def test_thousands_of_turns_are_not_encoded_again_for_each_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = talk(2000)
    encoded = []
    monkeypatch.setattr(
        chat, "render_prompt", lambda kept, tokenizer: encoded.append(len(kept)) or render_prompt(kept, tokenizer)
    )
    kept, num_dropped = trim_history(messages, TOKENIZER, context=1000, max_new_tokens=10)
    # With numbers of four digits 1 + 14 n + 6 ids in 991 places: n = 70.
    assert (len(kept), num_dropped) == (141, 1930)
    assert sum(encoded) < len(messages)


def test_the_system_text_stays() -> None:
    messages = talk(5, system="be nice")
    kept, num_dropped = trim_history(messages, TOKENIZER, context=48, max_new_tokens=5)
    # 1 + 9 (system and empty line) + 10 n + 6 ids in 44 places: n = 2.
    assert num_dropped == 3
    assert kept == [messages[0], *messages[7:]]


def test_a_message_that_cannot_fit_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="the message has 107 tokens, and the context of 64 has room for 49"):
        trim_history([*talk(3)[:-1], Message.of("user", "x" * 103)], TOKENIZER, context=64, max_new_tokens=100)
    with pytest.raises(ConfigError, match="with the system's has"):
        trim_history(talk(0, system="x" * 100), TOKENIZER, context=64, max_new_tokens=100)
