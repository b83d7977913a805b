"""Answers in the shapes of OpenAI's two interfaces, whole and in chunks. No logic: values in, dictionaries out.

Beyond OpenAI's: ``firstlight_parts`` (calls of the calculator and what it printed, which are not in ``content``), and in a
token's log-probability its ``id`` and whether it was forced (a tool's output, which the model did not choose).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from firstlight.infer.batch import Token
from firstlight.serve.answer import Piece
from firstlight.tokens.bpe import Tokenizer

LOWEST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON does not have; OpenAI's number."""

PART_NAMES = {"text": "text", "python": "python", "output": "python_output"}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model_entry(model: str, created_unix_s: float, facts: dict[str, Any]) -> dict[str, Any]:
    """One entry of ``/v1/models``."""
    return {
        "id": model,
        "object": "model",
        "created": int(created_unix_s),
        "owned_by": "firstlight",
        "firstlight": facts,
    }


# Chat.


def chat_message(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The assistant's whole message: its text, and its parts where there is more than text."""
    message: dict[str, Any] = {"role": "assistant", "content": content(pieces), "refusal": None}
    parts = joined_parts(pieces)
    if any(part["type"] != "text" for part in parts):
        message["firstlight_parts"] = parts
    return message


def chat_delta(pieces: Sequence[Piece]) -> dict[str, Any]:
    """What one step added to the message. Parts are given for what is not text."""
    delta: dict[str, Any] = {"content": content(pieces)}
    parts = [part for part in joined_parts(pieces) if part["type"] != "text"]
    if parts:
        delta["firstlight_parts"] = parts
    return delta


def content(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def joined_parts(pieces: Sequence[Piece]) -> list[dict[str, str]]:
    """Parts of an answer, pieces of one kind in a row as one; a part that was opened is there even if it is empty."""
    parts: list[dict[str, str]] = []
    for piece in pieces:
        name = PART_NAMES[piece.kind]
        if parts and parts[-1]["type"] == name and not piece.is_new_part:
            parts[-1]["text"] += piece.text
        elif piece.text or name != "text":
            parts.append({"type": name, "text": piece.text})
    return parts


def chat_logprobs(pieces: Sequence[Piece], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log-probabilities of the pieces' tokens in the chat interface's shape."""
    entries = [
        {
            **_entry(token.id, token.logprob, tokenizer),
            "top_logprobs": [_entry(i, logprob, tokenizer) for i, logprob in token.top],
            "is_forced": token.is_forced,
        }
        for piece in pieces
        for token in piece.tokens
    ]
    return {"content": entries, "refusal": None}


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = bytes_of(token_id, tokenizer)
    return {
        "token": data.decode("utf-8", "replace"),
        "bytes": list(data),
        "logprob": finite(logprob),
        "id": token_id,
        "is_special": token_id in tokenizer.special_ids.values(),
    }


def bytes_of(token_id: int, tokenizer: Tokenizer) -> bytes:
    """Raw bytes of an id; none for one that only the model has, whose vocabulary may be larger than the tokenizer's."""
    return tokenizer.id_bytes(token_id) if token_id < tokenizer.vocab_size else b""


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


# Completions.


class CompletionLogprobs:
    """Log-probabilities in the older interface's shape; ``text_offset`` counts on from chunk to chunk."""

    def __init__(self, tokenizer: Tokenizer, *, offset: int) -> None:
        self._tokenizer = tokenizer
        self._offset = offset

    def take(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Those of the next pieces."""
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for piece in pieces:
            for token in piece.tokens:
                found["tokens"].append(token_name(bytes_of(token.id, self._tokenizer)))
                found["token_logprobs"].append(finite(token.logprob))
                found["top_logprobs"].append(self._top(token))
                found["text_offset"].append(self._offset)
                self._offset += len(bytes_of(token.id, self._tokenizer).decode("utf-8", "ignore"))
        return found

    def _top(self, token: Token) -> dict[str, float]:
        return {token_name(bytes_of(i, self._tokenizer)): finite(logprob) for i, logprob in token.top}


def token_name(data: bytes) -> str:
    r"""A token as text; bytes that are no whole characters are spelled, as OpenAI does.

    >>> token_name("é".encode()), token_name("é".encode()[:1])
    ('é', 'bytes:\\xc3')
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
