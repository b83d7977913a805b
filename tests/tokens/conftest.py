"""A corpus and a tokenizer that the tokens' tests share."""

from __future__ import annotations

import inspect
import textwrap

import pytest

from firstlight.tokens.bpe import Tokenizer, train_tokenizer
from firstlight.tokens.samples import SAMPLES


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """About 100 kB of real English and code (a standard library module), and a little of many scripts."""
    return [*textwrap.dedent(inspect.getsource(inspect)).split("\n\n"), *SAMPLES.values()]


@pytest.fixture(scope="session")
def tokenizer(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus, vocab_size=1500, max_bytes=None)
