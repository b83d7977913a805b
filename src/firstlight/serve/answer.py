"""Tokens of one answer to what is shown of it: whole characters, nothing of a stop string, calls of the tool apart.

The end token is not shown; special tokens that open or close a call of the Python tool change the kind of what follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from firstlight.infer.batch import Token
from firstlight.serve.stops import StopScanner
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import PartKind
from firstlight.tokens.stream import StreamDecoder

KINDS: dict[str, PartKind] = {
    "<|python_start|>": "python",
    "<|python_end|>": "text",
    "<|output_start|>": "output",
    "<|output_end|>": "text",
}
"""What comes after a special token."""


@dataclass(frozen=True)
class Piece:
    """What an answer grows by. tokens: those whose text it is, wholly or in part; a special token has no text here.

    is_new_part: a call of the tool or an output begins with it, maybe behind another one.
    """

    kind: PartKind
    text: str
    tokens: tuple[Token, ...]
    is_new_part: bool = False


class AnswerText:
    """Text of one row's tokens as they come.

    is_over: nothing more is to come: the model ended it, a limit, or a stop string. finish_reason: ``stop`` or
    ``length`` then. num_tokens: tokens that the model wrote so far, its end token and a tool's output included.
    """

    def __init__(self, tokenizer: Tokenizer, *, stops: Sequence[str] = ()) -> None:
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._decoder = StreamDecoder(tokenizer)
        self._scanner = StopScanner(stops)
        self._kind: PartKind = "text"
        # The model's vocabulary may be larger than the tokenizer's.
        self._vocab_size = tokenizer.vocab_size
        self._special = frozenset(tokenizer.special_ids.values())
        self._kind_after = {tokenizer.special_ids[name]: kind for name, kind in KINDS.items()}
        # Characters decoded and given out so far, and tokens not given out with the place where their text starts.
        self._num_decoded = 0
        self._num_shown = 0
        self._waiting: deque[tuple[int, Token]] = deque()

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def continue_after(self, ids: Iterable[int]) -> None:
        """Go on behind ids that are shown already: in the middle of a character or of a tool's call, if they end there."""
        for token_id in ids:
            if token_id in self._special:
                self._decoder.flush()
                self._kind = self._kind_after.get(token_id, self._kind)
            else:
                self._decoder.push(token_id)

    def push(self, token: Token) -> list[Piece]:
        """What one more token makes visible. Tokens after the end are dropped."""
        if self.is_over:
            return []
        self.num_tokens += 1
        if token.finish_reason == "stop_id":
            return self.end("stop")
        has_text = token.id < self._vocab_size and token.id not in self._special
        pieces = self._text(token) if has_text else self._marker(token)
        if token.finish_reason is not None and not self.is_over:
            pieces += self.end("length")
        return pieces

    def end(self, reason: str) -> list[Piece]:
        """The answer ends here: what was held back (half a character comes as U+FFFD)."""
        pieces = self._rest()
        self.finish_reason = self.finish_reason or reason
        return pieces

    def _marker(self, token: Token) -> list[Piece]:
        kind = self._kind_after.get(token.id, self._kind)
        if kind == self._kind == "text":
            # It ends what never began: the text goes on around it.
            self._waiting.append((self._num_decoded, token))
            return self._given("")
        pieces = self._rest()
        if not self.is_over:
            self._kind = kind
            pieces.append(Piece(kind, "", (token,), is_new_part=kind != "text"))
        return pieces

    def _text(self, token: Token) -> list[Piece]:
        self._waiting.append((self._num_decoded, token))
        return self._show(self._decoder.push(token.id))

    def _rest(self) -> list[Piece]:
        """Everything held back, before the kind changes or the text ends."""
        pieces = self._show(self._decoder.flush())
        if not self.is_over:
            pieces += self._given(self._scanner.flush())
        return pieces

    def _show(self, text: str) -> list[Piece]:
        self._num_decoded += len(text)
        if self._kind != "text":
            return self._given(text)
        shown = self._scanner.push(text)
        if self._scanner.is_stopped:
            self.finish_reason = "stop"
        return self._given(shown)

    def _given(self, text: str) -> list[Piece]:
        self._num_shown += len(text)
        is_all = self._num_shown == self._num_decoded
        tokens = []
        while self._waiting and (is_all or self._waiting[0][0] < self._num_shown):
            tokens.append(self._waiting.popleft()[1])
        return [Piece(self._kind, text, tuple(tokens))] if text or tokens else []
