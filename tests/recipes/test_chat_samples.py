"""Answers as they are shown while a model is trained: with the special tokens that it wrote."""

from __future__ import annotations

from types import SimpleNamespace

from firstlight.infer.batch import Completion
from firstlight.recipes import chat_samples
from firstlight.recipes.chat_samples import MAX_NEW_TOKENS, answering
from firstlight.tokens.bpe import Tokenizer


def test_a_question_is_asked_as_in_training_and_the_answer_shows_its_special_tokens_by_name(monkeypatch):
    tokenizer = Tokenizer([bytes([b]) for b in range(256)])
    special = tokenizer.special_ids
    ids = [
        *"né ".encode(), special["<|python_start|>"], *b"1+1", special["<|python_end|>"], special["<|output_start|>"],
        *b"2", special["<|output_end|>"], *b"two", special["<|assistant_end|>"],
    ]  # fmt: skip
    asked = []

    def complete(model, requests, *, max_rows):
        asked.extend(requests)
        return [Completion(ids, [0.0] * len(ids), [False] * len(ids), "stop_id")]

    monkeypatch.setattr(chat_samples, "complete", complete)
    model = SimpleNamespace(config=SimpleNamespace(max_seq_len=64))
    said = answering(tokenizer, SimpleNamespace(run=None))(model, "hi", 7)
    assert said == " né <|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>two<|assistant_end|>"
    [request] = asked
    start = [
        special["<|bos|>"],
        special["<|user_start|>"],
        *b"hi",
        special["<|user_end|>"],
        special["<|assistant_start|>"],
    ]
    assert request.prompt_ids == tuple(start)
    assert (request.temperature, request.max_new_tokens, request.seed) == (0.0, MAX_NEW_TOKENS, 7)
    assert special["<|assistant_end|>"] in request.stop_ids
    assert special["<|python_end|>"] not in request.stop_ids
