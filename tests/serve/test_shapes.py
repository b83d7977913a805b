"""Claims of serve/shapes.py that the clients' tests do not show."""

from __future__ import annotations

from firstlight.infer.batch import Token
from firstlight.serve import shapes
from firstlight.serve.answer import Piece
from tests.serve.helpers import make_tokenizer

TOKENIZER = make_tokenizer()


def test_a_probability_of_nothing_has_a_number_in_json() -> None:
    token = Token(1, 65, float("-inf"), ((66, float("-inf")),), False, None)
    (entry,) = shapes.chat_logprobs([Piece("text", "A", (token,))], TOKENIZER)["content"]
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == -9999.0
    assert (entry["token"], entry["bytes"], entry["id"]) == ("A", [65], 65)


def test_parts_of_one_kind_in_a_row_are_one_unless_a_new_one_begins() -> None:
    pieces = [
        Piece("text", "a", ()),
        Piece("text", "b", ()),
        Piece("python", "", (), is_new_part=True),
        Piece("python", "1", ()),
        Piece("python", "", (), is_new_part=True),
        Piece("python", "2", ()),
        Piece("text", "", ()),
    ]
    assert shapes.joined_parts(pieces) == [
        {"type": "text", "text": "ab"},
        {"type": "python", "text": "1"},
        {"type": "python", "text": "2"},
    ]
    assert shapes.content(pieces) == "ab"


def test_a_message_of_text_alone_has_no_parts() -> None:
    assert shapes.chat_message([Piece("text", "a", ())]) == {"role": "assistant", "content": "a", "refusal": None}


def test_offsets_count_characters_from_chunk_to_chunk() -> None:
    logprobs = shapes.CompletionLogprobs(TOKENIZER, offset=5)
    the = TOKENIZER.encode("the")[0]
    first = logprobs.take(
        [Piece("text", "theA", (Token(1, the, -1.0, (), False, None), Token(1, 65, -2.0, (), False, None)))]
    )
    second = logprobs.take([Piece("text", "B", (Token(1, 66, -3.0, ((66, -3.0),), False, None),))])
    assert (first["tokens"], first["text_offset"]) == (["the", "A"], [5, 8])
    assert (second["text_offset"], second["top_logprobs"]) == ([9], [{"B": -3.0}])


def test_an_id_that_the_tokenizer_does_not_have_has_no_bytes() -> None:
    assert shapes.bytes_of(TOKENIZER.vocab_size, TOKENIZER) == b""
