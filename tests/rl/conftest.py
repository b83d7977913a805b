"""Fixtures of the tests of reinforcement learning."""

from __future__ import annotations

import pytest
from rl import toy

from firstlight.model.gpt import GPT
from firstlight.tokens.bpe import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return toy.byte_tokenizer()


@pytest.fixture
def model() -> GPT:
    return toy.tiny_gpt()
