"""Small corpora and a small tokenizer for the tests of the data path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from firstlight.data.sources.base import Source
from firstlight.data.sources.directory import open_directory
from firstlight.tokens.bpe import Tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Each byte is an id (BOS is 256), so what a text must become is known without any code under test."""
    return Tokenizer([bytes([b]) for b in range(256)])


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[[list[list[str]]], Source]:
    """Writes a directory of .jsonl files, one for each list of texts, and opens it."""

    def make(files: list[list[str]], folder: str = "corpus") -> Source:
        directory = tmp_path / folder
        directory.mkdir(exist_ok=True)
        for i, texts in enumerate(files):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (directory / f"part_{i}.jsonl").write_text(lines, encoding="utf-8")
        return open_directory(directory)

    return make


def some_texts(start: int, count: int) -> list[str]:
    """Different texts of 1 to some 40 bytes, among them one with characters of several bytes."""
    return [
        f"{n} " + "abcdefghijklmnopqrstuvwxyz"[: n * 7 % 26] + "é🐕" * (n % 3 == 0) for n in range(start, start + count)
    ]


@pytest.fixture
def three_files(make_source) -> Source:
    return make_source([some_texts(0, 25), some_texts(100, 40), some_texts(200, 10)])
