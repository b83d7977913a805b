"""50 conversations and what each must become, written down by hand; and ids of that without the code under test.

``data/chat/masks.json`` has for each conversation its messages (role, content) and its stretches in order: ``s:`` a special
token without loss, ``S:`` one with loss, ``t:`` a text without loss, ``T:`` one with loss.
"""

from __future__ import annotations

import json
from pathlib import Path

import tiktoken

from firstlight.tokens.bpe import Tokenizer

NAMES = ("bos", "user_start", "user_end", "assistant_start", "assistant_end",
         "python_start", "python_end", "output_start", "output_end")  # fmt: skip
"""Special tokens in the order of their ids, which follow those of the ranks."""

TABLE = json.loads((Path(__file__).parent / "data" / "chat" / "masks.json").read_text(encoding="utf-8"))


def json_messages(entry: dict) -> list[dict]:
    return [{"role": role, "content": content} for role, content in entry["messages"]]


def expected(entry: dict, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids without BOS, and which carry loss: the stretches one after another, texts by tiktoken alone."""
    num_ranks = tokenizer.vocab_size - len(NAMES)
    ranks = {tokenizer.id_bytes(i): i for i in range(num_ranks)}
    encoding = tiktoken.Encoding("oracle", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={})
    ids: list[int] = []
    mask: list[bool] = []
    for stretch in entry["pieces"]:
        kind, text = stretch[0], stretch[2:]
        new = [num_ranks + NAMES.index(text)] if kind in "sS" else encoding.encode_ordinary(text)
        ids += new
        mask += [kind in "ST"] * len(new)
    return ids, mask
