"""Claims of recipes/explain/pieces.py: what is shown is the tokenizer's and the packing's own."""

from __future__ import annotations

import pytest

from firstlight.data.packing import pack_bestfit, pack_stream
from firstlight.recipes.explain.pieces import EMPTY, SMALL_T, cut_ids, pack_small, piece_of, split_documents, visible
from firstlight.tokens.bpe import Tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer([*(bytes([b]) for b in range(256)), b" t", b"he", b" the"])


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b" a\tb\r\n", "·a→b⟨0D⟩↵"),
        ("é漢🌅".encode(), "é漢🌅"),
        ("漢".encode()[:2], "⟨E6⟩⟨BC⟩"),
        (b"\x1b[31m", "⟨1B⟩[31m"),
        ("\u202e".encode(), "⟨E2 80 AE⟩"),
        ("\u200b".encode(), "⟨E2 80 8B⟩"),
    ],
)
def test_nothing_hides_in_a_piece(raw: bytes, shown: str) -> None:
    assert visible(raw) == shown


def test_a_piece_has_its_bytes_and_a_special_one_has_none(tokenizer: Tokenizer) -> None:
    piece = piece_of(tokenizer, 258)
    assert (piece.id, piece.raw, piece.text, piece.is_special) == (258, b" the", "·the", False)
    bos = piece_of(tokenizer, tokenizer.bos_id)
    assert (bos.raw, bos.text, bos.is_special) == (b"", "<|bos|>", True)


def test_pieces_of_a_text_are_its_bytes(tokenizer: Tokenizer) -> None:
    text = "The é of the 漢字\n"
    assert b"".join(piece_of(tokenizer, id).raw for id in tokenizer.encode(text)) == text.encode()


def test_sentences_are_documents_and_one_sentence_is_halved() -> None:
    assert split_documents("One. Two!\nThree") == ("One.", "Two!", "Three")
    assert split_documents("just some words here") == ("just some", "words here")
    assert split_documents("x") == ("x",)
    assert split_documents("  ") == ()


@pytest.mark.parametrize(("packing", "pack"), [("bestfit", pack_bestfit), ("stream", pack_stream)])
def test_rows_hold_what_the_packing_says(tokenizer: Tokenizer, packing: str, pack) -> None:
    import numpy as np

    text = "abc. the sun. x. the long one goes on. end."
    batch = pack_small(text, tokenizer, packing=packing, seed=3)
    ids = [tokenizer.encode(document) for document in batch.documents]
    packed = pack(np.array([len(each) for each in ids]), row_len=SMALL_T + 1, seed=3)
    assert len(batch.rows) == min(4, packed.num_rows)
    for i, row in enumerate(batch.rows):
        wanted: list[int] = []
        for doc, start, stop, with_bos in packed.row(i):
            wanted += ([tokenizer.bos_id] if with_bos else []) + ids[doc][start:stop]
        assert [id for id in row if id != EMPTY] == wanted
        assert len(row) == SMALL_T + 1
        assert all(id in batch.words for id in row if id != EMPTY)
    if packing == "bestfit":
        assert {row[0] for row in batch.rows} == {tokenizer.bos_id}


def test_a_cut_is_counted() -> None:
    assert cut_ids([1, 2, 3], 2) == ([1, 2], 1)
    assert cut_ids([1, 2, 3], 9) == ([1, 2, 3], 0)
