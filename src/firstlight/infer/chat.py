"""A conversation around the engine: answers as parts, histories that fit the context, and where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.errors import ConfigError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, PartKind, render_prompt
from firstlight.tokens.stream import StreamDecoder


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: its end, and those that begin another turn or text. Not those of the tool."""
    names = ("<|assistant_end|>", "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>")
    return frozenset(tokenizer.special_ids[name] for name in names if name in tokenizer.special_ids)


class PartStream:
    """An answer's ids, one by one, as pieces of its parts; never with half a character.

    The tool's special tokens begin and end parts; one that begins inside another part ends that one. An end without a
    beginning, and all other special tokens, are left out. Bytes that are no UTF-8 become U+FFFD.

    kind: of the part that the next id belongs to. num_parts: parts begun, by which two calls in a row can be told apart.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kind: PartKind = "text"
        self.num_parts = 0
        self._decoder = StreamDecoder(tokenizer)
        self._special = frozenset(tokenizer.special_ids.values())
        kinds: tuple[PartKind, ...] = ("python", "output")
        self._starts = {tokenizer.special_ids[f"<|{kind}_start|>"]: kind for kind in kinds}
        self._ends = {tokenizer.special_ids[f"<|{kind}_end|>"] for kind in kinds}

    def push(self, token_id: int) -> list[Part]:
        """The pieces that this id makes whole: none, one, or the rest of the part that it ends."""
        if token_id not in self._special:
            text = self._decoder.push(token_id)
            return [Part(self.kind, text)] if text else []
        if token_id not in self._starts and not (token_id in self._ends and self.kind != "text"):
            return []
        rest = self.flush()
        self.kind = self._starts.get(token_id, "text")
        self.num_parts += 1
        return rest

    def flush(self) -> list[Part]:
        """End of the answer: what is left of an unfinished character."""
        text = self._decoder.flush()
        return [Part(self.kind, text)] if text else []


def split_parts(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Part, ...]:
    """The ids of an answer as its parts: text, calls of the tool and their outputs; see `PartStream`.

    A call or output that is not closed ends with the ids. Parts of text that are empty are left out.
    """
    stream = PartStream(tokenizer)
    texts: list[tuple[PartKind, list[str]]] = [("text", [])]
    for token_id in ids:
        num_before = stream.num_parts
        texts[-1][1].extend(piece.text for piece in stream.push(token_id))
        if stream.num_parts > num_before:
            texts.append((stream.kind, []))
    texts[-1][1].extend(piece.text for piece in stream.flush())
    parts = [Part(kind, "".join(pieces)) for kind, pieces in texts]
    return tuple(part for part in parts if part.text or part.kind != "text")


def trim_history(
    messages: Sequence[Message], tokenizer: Tokenizer, *, context: int, max_new_tokens: int
) -> tuple[list[Message], int]:
    """The messages that fit the context with room for an answer, and how many turns were dropped.

    Dropped are the oldest pairs of a user's message and its answer, whole; the system's message and BOS stay. Room for an
    answer is ``max_new_tokens``, or a quarter of the context where that is less.

    Raises ConfigError where the last message alone does not fit.
    """
    kept = list(messages)
    # The last new token needs no place in the context: nothing is predicted from it.
    room = context + 1 - min(max_new_tokens, max(1, context // 4))
    first = 1 if kept and kept[0].role == "system" else 0
    num_pairs = max(0, (len(kept) - first - 1) // 2)

    def newest(num: int) -> list[Message]:
        return kept[:first] + kept[first + 2 * (num_pairs - num) :]

    def num_tokens(num: int) -> int:
        return len(render_prompt(newest(num), tokenizer))

    if (least := num_tokens(0)) > room:
        with_system = " with the system's" if first else ""
        raise ConfigError(
            f"the message{with_system} has {least} tokens, and the context of {context} has room for {room}",
            hint="write a shorter message" + (" or a shorter system text" if first else ""),
        )
    # From the newest on, by doubling and halving: a client may send thousands of turns, and each look encodes what it keeps.
    fits, too_many = 0, 1
    while too_many <= num_pairs and num_tokens(too_many) <= room:
        fits, too_many = too_many, 2 * too_many
    too_many = min(too_many, num_pairs + 1)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if num_tokens(middle) <= room else (fits, middle)
    return newest(fits), num_pairs - fits
