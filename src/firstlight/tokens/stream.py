"""Ids to text one by one, as a model makes them, without ever showing half a character."""

from __future__ import annotations

import codecs

from firstlight.tokens.bpe import Tokenizer


class StreamDecoder:
    """Text of ids as they come. Bytes wait until their character is whole.

    A character of four bytes (most emoji) may be up to four ids; `push` returns "" for the first ones and the character
    with the last. Bytes that can no longer become a character come out as U+FFFD. All pushes and the flush, joined, are
    what `Tokenizer.decode` gives for all ids at once.

    >>> decoder = StreamDecoder(Tokenizer([bytes([b]) for b in range(256)]))
    >>> [decoder.push(i) for i in "né".encode()], decoder.flush()
    (['n', '', 'é'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became whole with this id; raises DataError for an id outside the vocabulary."""
        return self._decoder.decode(self._tokenizer.id_bytes(token_id))

    def flush(self) -> str:
        """End of the stream: U+FFFD for an unfinished character, else ""; the decoder is as new afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
