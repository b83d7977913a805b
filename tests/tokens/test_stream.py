"""Streaming decode: no half characters, and the same text as decoding all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.stream import StreamDecoder

BYTES = Tokenizer([bytes([b]) for b in range(256)])


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


def test_emoji_of_four_ids_comes_out_whole() -> None:
    assert _stream(BYTES, list("hi 🐕!".encode())) == ["h", "i", " ", "", "", "", "🐕", "!", ""]


@given(st.text(max_size=50))
def test_every_text_streams_without_replacement_signs(text: str) -> None:
    parts = _stream(BYTES, list(text.encode()))
    assert "".join(parts) == text
    assert parts[-1] == ""


@given(st.lists(st.integers(0, 255), max_size=50))
def test_any_bytes_stream_to_what_python_decodes_at_once(data: list[int]) -> None:
    assert "".join(_stream(BYTES, data)) == bytes(data).decode("utf-8", errors="replace")


def test_broken_bytes_come_out_as_soon_as_they_cannot_be_completed() -> None:
    decoder = StreamDecoder(BYTES)
    assert [decoder.push(b) for b in b"\xf0\x9fA"] == ["", "", "�A"]
    assert decoder.push(0x80) == "�"


def test_flush_gives_one_sign_for_an_unfinished_character_and_starts_anew() -> None:
    decoder = StreamDecoder(BYTES)
    assert [decoder.push(b) for b in "🐕".encode()[:3]] == ["", "", ""]
    assert decoder.flush() == "�"
    assert decoder.flush() == ""
    assert decoder.push(ord("x")) == "x"


def test_trained_tokens_stream_to_the_text(tokenizer: Tokenizer) -> None:
    text = "naïve 🙂 日本語 def f(x): return x"
    assert "".join(_stream(tokenizer, tokenizer.encode(text))) == text


def test_special_token_streams_as_its_name(tokenizer: Tokenizer) -> None:
    assert _stream(tokenizer, [tokenizer.bos_id]) == ["<|bos|>", ""]


@pytest.mark.parametrize("token_id", [-1, 265])
def test_id_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(DataError, match=f"id {token_id} is not in the vocabulary of 265"):
        StreamDecoder(BYTES).push(token_id)


def test_invalid_utf8_collection_streams_like_pythons_decoder(shared_data: Path) -> None:
    lines = (shared_data / "tokenizer" / "invalid_utf8.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [bytes.fromhex(json.loads(line)["hex"]) for line in lines]
    cases.append((shared_data / "tokenizer" / "utf8_stress_test.txt").read_bytes())
    assert len(cases) > 20
    for data in cases:
        assert "".join(_stream(BYTES, list(data))) == data.decode("utf-8", errors="replace")
