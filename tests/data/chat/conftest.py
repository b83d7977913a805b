"""Files of conversations, and a small tokenizer."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from firstlight.tokens.bpe import Tokenizer, train_tokenizer
from firstlight.tokens.samples import SAMPLES


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """600 ids, learned from a module of the standard library and from many scripts."""
    texts = [*textwrap.dedent(inspect.getsource(textwrap)).split("\n\n"), *SAMPLES.values()]
    return train_tokenizer(texts, vocab_size=600, max_bytes=None)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (JSON values, or lines as they are where a text) to a .jsonl file."""

    def write(rows: Sequence[Any], name: str = "talks.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
