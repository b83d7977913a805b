"""Claims of serve/answer.py: streamed pieces are what the whole answer's ids say, and each token goes with its text."""

from __future__ import annotations

import random

from firstlight.infer.batch import Token
from firstlight.infer.chat import split_parts
from firstlight.serve.answer import AnswerText, Piece
from firstlight.serve.shapes import joined_parts
from tests.serve.helpers import make_tokenizer

TOKENIZER = make_tokenizer()
SPECIAL = TOKENIZER.special_ids
TOOL_IDS = [SPECIAL[f"<|{name}_{end}|>"] for name in ("python", "output") for end in ("start", "end")]


def tokens_of(ids: list[int], *, reason: str = "max_new_tokens") -> list[Token]:
    last = len(ids) - 1
    return [Token(1, id, -float(i), (), False, reason if i == last else None) for i, id in enumerate(ids)]  # pyrefly: ignore


def pushed(answer: AnswerText, tokens: list[Token]) -> list[Piece]:
    return [piece for token in tokens for piece in answer.push(token)]


def test_pieces_joined_are_the_parts_of_the_whole_answer() -> None:
    rng = random.Random(1)
    texts = ["th", "é", "😀", "a", " the", "\n"]
    for _ in range(500):
        ids: list[int] = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.25:
                ids.append(rng.choice(TOOL_IDS))
            elif kind < 0.4:
                ids.append(rng.randrange(256))
            else:
                ids += TOKENIZER.encode(rng.choice(texts))
        pieces = pushed(AnswerText(TOKENIZER), tokens_of(ids))
        names = {"text": "text", "python": "python", "python_output": "output"}
        found = [(names[part["type"]], part["text"]) for part in joined_parts(pieces) if part["text"]]
        # Two neighbouring parts of text may be one here: nothing lies between them.
        expected = [(part.kind, part.text) for part in split_parts(ids, TOKENIZER) if part.text]
        assert found == expected
        assert [token.id for piece in pieces for token in piece.tokens] == ids


def test_no_piece_ends_in_half_a_character() -> None:
    answer = AnswerText(TOKENIZER)
    texts = ["".join(piece.text for piece in answer.push(token)) for token in tokens_of(list("a😀b".encode()))]
    assert texts == ["a", "", "", "", "😀", "b"]


def test_half_a_character_at_the_limit_is_one_replacement() -> None:
    pieces = pushed(AnswerText(TOKENIZER), tokens_of(list("é".encode())[:1]))
    assert "".join(piece.text for piece in pieces) == "\ufffd"


def test_a_stop_across_tokens_ends_the_answer_and_drops_its_own_tokens() -> None:
    answer = AnswerText(TOKENIZER, stops=["END"])
    tokens = tokens_of(list(b"aE-EN") + list(b"Dxyz"))
    pieces = pushed(answer, tokens)
    assert "".join(piece.text for piece in pieces) == "aE-"
    assert [token.id for piece in pieces for token in piece.tokens] == list(b"aE-")
    assert answer.finish_reason == "stop"
    # a, E, -, E, N, D: what came after the stop was not asked for.
    assert answer.num_tokens == 6


def test_a_token_that_a_stop_cuts_in_two_is_kept_for_its_first_half() -> None:
    answer = AnswerText(TOKENIZER, stops=["e"])
    the = TOKENIZER.encode("the")
    assert len(the) == 1
    pieces = pushed(answer, tokens_of([*the, 65]))
    assert [(piece.text, len(piece.tokens)) for piece in pieces] == [("th", 1)]


def test_a_stop_string_in_code_for_the_tool_does_not_end_the_answer() -> None:
    ids = [SPECIAL["<|python_start|>"], *b"END", SPECIAL["<|python_end|>"], *b"ok"]
    answer = AnswerText(TOKENIZER, stops=["END"])
    assert joined_parts(pushed(answer, tokens_of(ids))) == [
        {"type": "python", "text": "END"},
        {"type": "text", "text": "ok"},
    ]
    assert answer.finish_reason == "length"


def test_the_end_token_is_not_shown_and_counts() -> None:
    answer = AnswerText(TOKENIZER)
    pieces = pushed(answer, tokens_of([65, SPECIAL["<|assistant_end|>"]], reason="stop_id"))
    assert "".join(piece.text for piece in pieces) == "A"
    assert (answer.finish_reason, answer.num_tokens) == ("stop", 2)


def test_text_held_back_for_a_stop_comes_with_the_end() -> None:
    answer = AnswerText(TOKENIZER, stops=["xyz"])
    pieces = pushed(answer, tokens_of(list(b"axy")))
    assert [piece.text for piece in pieces] == ["a", "xy"]
    assert [len(piece.tokens) for piece in pieces] == [1, 2]


def test_an_answer_that_goes_on_finishes_the_character_it_began() -> None:
    answer = AnswerText(TOKENIZER)
    answer.continue_after([SPECIAL["<|python_start|>"], *"é".encode()[:1]])
    pieces = pushed(answer, tokens_of(["é".encode()[1], SPECIAL["<|python_end|>"], 65]))
    assert [(piece.kind, piece.text) for piece in pieces if piece.text] == [("python", "é"), ("text", "A")]


def test_ids_that_only_the_model_has_are_passed_over() -> None:
    pieces = pushed(AnswerText(TOKENIZER), tokens_of([65, TOKENIZER.vocab_size + 3, 66]))
    assert "".join(piece.text for piece in pieces) == "AB"
