"""A corpus, a tokenizer, and a plain Python byte-pair encoding as the oracle: what the tokens' tests share."""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import regex

from firstlight.tokens.bpe import Tokenizer, train_tokenizer
from firstlight.tokens.samples import SAMPLES


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """About 100 kB of real English and code (a standard library module), and a little of many scripts."""
    return [*textwrap.dedent(inspect.getsource(inspect)).split("\n\n"), *SAMPLES.values()]


@pytest.fixture(scope="session")
def tokenizer(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus, vocab_size=1500, max_bytes=None)


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """``train`` and ``encode`` in plain Python, slow and obvious. Splits with the `regex` library, not with Rust's."""
    return SimpleNamespace(train=_train, encode=_encode)


def _split(text: str, pattern: str) -> list[bytes]:
    pieces = regex.findall(pattern, text)
    assert "".join(pieces) == text
    return [piece.encode() for piece in pieces]


def _merged(ids: tuple[int, ...], pair: tuple[int, int], new_id: int) -> tuple[int, ...]:
    out: list[int] = []
    i = 0
    while i < len(ids):
        if ids[i : i + 2] == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return tuple(out)


def _train(texts: list[str], *, num_ranks: int, pattern: str) -> list[bytes]:
    """Raw bytes of each id: recount all pairs before each merge, take the most frequent, the lowest ids on a tie."""
    words = Counter(tuple(piece) for text in texts for piece in _split(text, pattern))
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < num_ranks:
        counts: Counter[tuple[int, int]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], p))
        merged_words: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            merged_words[_merged(word, pair, len(tokens))] += count
        words = merged_words
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


def _encode(text: str, *, tokens: list[bytes], pattern: str) -> list[int]:
    """Ids: in each piece, join the leftmost of the neighbours whose joined bytes have the lowest rank, until none has one."""
    ranks = {token: i for i, token in enumerate(tokens)}
    ids = []
    for piece in _split(text, pattern):
        parts = [bytes([b]) for b in piece]
        while len(parts) > 1:
            rank, i = min((ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1))
            if rank == len(ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids
