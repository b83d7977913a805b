"""The special tokens: ids that no text can produce.

They are in the vocabulary from the start, so that chat and tool use later need no new embedding rows.
"""

from __future__ import annotations

BOS = "<|bos|>"

SPECIAL_TOKENS: tuple[str, ...] = (
    BOS,  # begins every document
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the Python tool
    "<|python_end|>",
    "<|output_start|>",  # what the tool printed
    "<|output_end|>",
)


def special_ids(num_ranks: int, names: tuple[str, ...] = SPECIAL_TOKENS) -> dict[str, int]:
    """Ids of the special tokens: the last of the vocabulary, after ``num_ranks`` ordinary ones.

    >>> special_ids(256)["<|bos|>"]
    256
    """
    return {name: num_ranks + i for i, name in enumerate(names)}
