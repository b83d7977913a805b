"""Text to ids, piece by piece, and ids to a small batch. The tokenizer's and the packing's own code; no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from firstlight.data.packing import pack
from firstlight.data.rows import PAD
from firstlight.recipes.explain.facts import PackedBatch, Piece
from firstlight.tokens.bpe import Tokenizer

SMALL_T = 8
SMALL_ROWS = 4
EMPTY = PAD


def visible(raw: bytes) -> str:
    """Bytes as one line of text that shows everything: a space as ·, a line end as ↵, a tab as →, and what is no printable
    character as its hexadecimal bytes.

    >>> visible(b" the"), visible(b"a\\n"), visible(b"\\xc3"), visible(bytes([27]))
    ('·the', 'a↵', '⟨C3⟩', '⟨1B⟩')
    """
    shown = []
    for character in raw.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            shown.append(f"⟨{ord(character) - 0xDC00:02X}⟩")
        elif character in " \n\t":
            shown.append({" ": "·", "\n": "↵", "\t": "→"}[character])
        elif character.isprintable():
            shown.append(character)
        else:
            shown.append(f"⟨{character.encode().hex(' ').upper()}⟩")
    return "".join(shown)


def piece_of(tokenizer: Tokenizer, id: int) -> Piece:
    """One id with its bytes; a special token has none of a text's bytes and shows its name."""
    raw = tokenizer.id_bytes(id)
    if id in tokenizer.special_ids.values():
        return Piece(id, b"", raw.decode(), is_special=True)
    return Piece(id, raw, visible(raw))


def split_documents(text: str, *, most: int = 6) -> tuple[str, ...]:
    """Sentences of a text, as small documents to pack: its first ``most``, or halves of a text that has only one."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]
    if len(parts) < 2:
        words = text.split(" ")
        half = len(words) // 2
        parts = [part for part in (" ".join(words[:half]), " ".join(words[half:])) if part.strip()]
    return tuple(parts[:most])


def pack_small(text: str, tokenizer: Tokenizer, *, packing: str, seed: int = 0) -> PackedBatch:
    """A text's sentences as documents, packed into rows of SMALL_T + 1 places by the code that packs for training."""
    documents = split_documents(text)
    ids = [tokenizer.encode(document) for document in documents]
    lengths = np.array([len(each) for each in ids], dtype=np.int64)
    packed = pack(packing, lengths, row_len=SMALL_T + 1, seed=seed)
    rows = []
    for i in range(min(packed.num_rows, SMALL_ROWS)):
        row: list[int] = []
        for segment in packed.row(i):
            row += [tokenizer.bos_id] * segment.with_bos + ids[segment.doc][segment.start : segment.stop]
        rows.append(tuple(row + [EMPTY] * (SMALL_T + 1 - len(row))))
    used = sorted({id for row in rows for id in row if id != EMPTY})
    words = {id: piece_of(tokenizer, id).text for id in used}
    return PackedBatch(packing, documents, tuple(rows), words, tokenizer.bos_id)


def cut_ids(ids: Sequence[int], limit: int) -> tuple[list[int], int]:
    """The first ``limit`` ids, and how many were cut."""
    return list(ids[:limit]), max(0, len(ids) - limit)
