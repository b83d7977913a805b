"""A conversation around the engine: answers as parts, histories that fit the context, and where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.errors import ConfigError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, PartKind, render_prompt


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: its end, and those that begin another turn or text. Not those of the tool."""
    names = ("<|assistant_end|>", "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>")
    return frozenset(tokenizer.special_ids[name] for name in names if name in tokenizer.special_ids)


def split_parts(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Part, ...]:
    """The ids of an answer as its parts: text, calls of the tool and their outputs.

    A call or output that is not closed ends with the ids; one that begins inside another ends that one. An end without a
    beginning, and the ids of `stop_ids`, are left out. Parts of text that are empty are left out too. Bytes that are no
    UTF-8 become U+FFFD.
    """
    starts: dict[int, PartKind] = {
        tokenizer.special_ids["<|python_start|>"]: "python",
        tokenizer.special_ids["<|output_start|>"]: "output",
    }
    special = frozenset(tokenizer.special_ids.values())
    parts: list[Part] = []
    kind: PartKind = "text"
    held: list[int] = []

    def close() -> None:
        if held or kind != "text":
            parts.append(Part(kind, tokenizer.decode(held)))
        held.clear()

    for token_id in ids:
        if token_id not in special:
            held.append(token_id)
        elif token_id in starts or kind != "text":
            close()
            kind = starts.get(token_id, "text")
    close()
    return tuple(parts)


def trim_history(
    messages: Sequence[Message], tokenizer: Tokenizer, *, context: int, max_new_tokens: int
) -> tuple[list[Message], int]:
    """The messages that fit the context with room for an answer, and how many turns were dropped.

    Dropped are the oldest pairs of a user's message and its answer, whole; the system's message and BOS stay. Room for an
    answer is ``max_new_tokens``, or a quarter of the context where that is less.

    Raises ConfigError where the last message alone does not fit.
    """
    kept, num_dropped = list(messages), 0
    # The last new token needs no place in the context: nothing is predicted from it.
    room = context + 1 - min(max_new_tokens, max(1, context // 4))
    first = 1 if kept and kept[0].role == "system" else 0
    while True:
        num_tokens = len(render_prompt(kept, tokenizer))
        if num_tokens <= room:
            return kept, num_dropped
        if len(kept) - first < 3:
            with_system = " with the system's" if first else ""
            raise ConfigError(
                f"the message{with_system} has {num_tokens} tokens, and the context of {context} has room for {room}",
                hint="write a shorter message" + (" or a shorter system text" if first else ""),
            )
        del kept[first : first + 2]
        num_dropped += 1
