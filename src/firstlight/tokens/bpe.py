"""Byte-level BPE: text to ids and back.

A text is cut into pieces by a regular expression, and each piece's UTF-8 bytes are merged pair by pair, the pair with
the lowest rank first (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2). All 256 bytes are in the vocabulary,
so every text has ids and there is no "unknown" token. ``tiktoken`` does the merging (or `fast`, for large batches),
``rustbpe`` finds the ranks.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import rustbpe
import tiktoken

from firstlight.errors import ConfigError, DataError
from firstlight.tokens import fast, tokenizer_file
from firstlight.tokens.special import BOS, SPECIAL_TOKENS, special_ids

# The pattern of GPT-4's tokenizer, but digits in groups of 1 to 2 instead of 1 to 3: nanochat's log of 2026-01-13
# measured 0.969 / 0.965 / 0.972 bits per byte for groups of at most 1 / 2 / 3 with a vocabulary of 32k.
# In order: 's 't 'll ...; a word with one leading space or mark; 1-2 digits; marks with the line ends after them;
# blanks up to a line end; blanks up to the one that belongs to the next word; other blanks.
SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)

# Unicode White_Space without CR and LF, as the Rust regex engine's \s has it (Python's \s also takes U+001C to U+001F).
_BLANKS = r"\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# The engine keeps a stack entry per character for `\s+(?!\S)` and panics at one million; 100,000 leaves a wide margin.
LONG_BLANK_RUN = 100_000
_LONG_BLANKS = re.compile(rf"(?<![{_BLANKS}])[{_BLANKS}]{{{LONG_BLANK_RUN},}}")


def cut_long_blanks(text: str) -> Iterator[tuple[str, bool]]:
    """Cut around very long runs of blanks: parts of the text in order, and whether each is such a run.

    Parts encode exactly as the whole text does under SPLIT_PATTERN, because the cuts are where the pattern always cuts.
    It makes one piece of a run of blanks up to, but without, the last blank before a visible character (that blank leads
    the next piece), or of the whole run at the end of the text. A run that ends in a line end is left alone: there it is
    one piece with what is around it, and needs no stack.

    >>> [part for part, _ in cut_long_blanks("short texts are one part")]
    ['short texts are one part']
    """
    if len(text) < LONG_BLANK_RUN:
        yield text, False
        return
    done = 0
    for run in _LONG_BLANKS.finditer(text):
        start, stop = run.span()
        if stop < len(text):
            if text[stop] in "\r\n":
                continue
            stop -= 1
        if start > done:
            yield text[done:start], False
        yield text[start:stop], True
        done = stop
    if done < len(text):
        yield text[done:], False


def check_unicode(text: str) -> None:
    """Raise DataError where a string is not Unicode text (a lone surrogate), naming where.

    Such strings come from careless JSON escapes. They have no UTF-8 bytes, so no ids could give them back unchanged.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _not_unicode(error) from None


def _not_unicode(error: UnicodeEncodeError) -> DataError:
    return DataError(
        f"character {error.start} of a text is the lone surrogate {error.object[error.start]!a}: it has no UTF-8 bytes",
        hint="drop the text, or replace such characters: text.encode('utf-8', 'replace').decode()",
    )


def make_encoding(ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> tiktoken.Encoding:
    """A tiktoken encoding; raises ConfigError where the pattern is not a regular expression that the engine takes."""
    try:
        return tiktoken.Encoding("firstlight", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except ValueError as error:
        raise ConfigError(f"the split pattern {pattern!r} is not a valid regular expression: {error}") from error


def content_hash(tokens: Sequence[bytes], pattern: str, special: dict[str, int]) -> str:
    """SHA-256 (hex) of what decides the ids: ranks, pattern, special tokens; 8 bytes of length go before each part."""
    digest = hashlib.sha256(b"firstlight-bpe")
    names = [name.encode() for name, _ in sorted(special.items(), key=lambda item: item[1])]
    for part in (pattern.encode(), len(names).to_bytes(8, "little"), *names, *tokens):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


class Tokenizer:
    """Text to ids and back.

    vocab_size: number of ids, special tokens included. Ids are the ranks in order, then the special tokens.
    bos_id, special_ids: ids of the special tokens; no text is ever encoded to one of them.
    pattern: the regular expression that cuts a text into pieces.
    content_hash: SHA-256 of ranks, pattern and special tokens: equal hash, equal ids.
    facts: how it was trained (documents, bytes, versions ...); not part of the hash.
    num_encoded_by: texts that `encode_batch` has encoded so far, by encoder: ``fast`` and ``tiktoken``.

    >>> tokenizer = Tokenizer([bytes([b]) for b in range(256)] + [b"hi"])
    >>> tokenizer.encode("hi!")
    [256, 33]
    >>> tokenizer.vocab_size, tokenizer.bos_id
    (266, 257)
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        pattern: str = SPLIT_PATTERN,
        special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
        facts: dict | None = None,
    ) -> None:
        """``tokens``: raw bytes of each ordinary id, in the order of their ranks; the first 256 are the single bytes.

        Raises DataError where a byte is missing or two ids have the same bytes, ConfigError for a bad pattern.
        """
        if sorted(tokens[:256]) != [bytes([b]) for b in range(256)]:
            raise DataError("the first 256 ranks must be the 256 single bytes, or some texts would have no ids")
        ranks = {token: i for i, token in enumerate(tokens)}
        if len(ranks) != len(tokens) or b"" in ranks:
            raise DataError("two ranks have the same bytes, or one has none: each id needs bytes of its own")
        if BOS not in special_tokens or len(set(special_tokens)) != len(special_tokens):
            raise DataError(f"the special tokens {special_tokens} must be different from each other and include {BOS}")
        self.pattern = pattern
        self.special_ids = special_ids(len(tokens), special_tokens)
        self.bos_id = self.special_ids[BOS]
        self.vocab_size = len(tokens) + len(special_tokens)
        self.facts = dict(facts or {})
        self.content_hash = content_hash(tokens, pattern, self.special_ids)
        self.num_encoded_by: Counter[str] = Counter()
        self._num_batch_chars = 0
        self._ranks = ranks
        self._tokens = tuple(tokens)
        self._bytes_of = dict(enumerate([*tokens, *(name.encode() for name in special_tokens)]))
        self._encoding = make_encoding(ranks, pattern, self.special_ids)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json``, or the one in a directory.

        Raises DataError where it is missing, something else, of another version, or damaged (every field is checked).
        """
        path = tokenizer_file.find(Path(path))
        fields = tokenizer_file.read(path)
        try:
            tokenizer = cls(
                fields.tokens, pattern=fields.pattern, special_tokens=fields.special_tokens, facts=fields.facts
            )
        except (ConfigError, DataError) as error:
            raise DataError(f"{path}: {error.what}", hint=error.hint) from error
        if tokenizer.content_hash != fields.content_hash:
            raise DataError(
                f"{path} is damaged: its content hash says {fields.content_hash[:16]}..., "
                f"its content hashes to {tokenizer.content_hash[:16]}...",
                hint="a model is tied to the exact tokenizer of its training: restore the file, or train anew",
            )
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``: to a temporary name first, then renamed, so the file is whole or not there."""
        fields = tokenizer_file.Fields(
            tokens=self._tokens,
            pattern=self.pattern,
            special_tokens=tuple(self.special_ids),
            facts=self.facts,
            content_hash=self.content_hash,
        )
        tokenizer_file.write(Path(path), fields)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS. What looks like a special token is text like any other.

        Raises DataError for a string with a lone surrogate (see `check_unicode`).
        """
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text: uint32 arrays, the same ids as `encode`.

        After the first megabyte, texts go to `firstlight.tokens.fast` where that can take them (``encoder_note`` says
        so, ``num_encoded_by`` counts); the others to tiktoken. Both work on ``num_threads`` threads.
        """
        found: list[np.ndarray | None] = [None] * len(texts)
        self._num_batch_chars += sum(map(len, texts))
        if self._num_batch_chars >= fast.MIN_CHARS and (encoder := self._fast[0]) is not None:
            try:
                found = encoder.encode_batch(texts, num_threads)
            except UnicodeEncodeError as error:
                raise _not_unicode(error) from None
        rest = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        if num_threads == 1 or len(rest) < 2:
            encoded = iter([self._encode(text) for text in rest])
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                encoded = iter(list(pool.map(self._encode, rest)))
        self.num_encoded_by.update({"fast": len(texts) - len(rest), "tiktoken": len(rest)})
        return [next(encoded) if ids is None else ids for ids in found]

    @property
    def encoder_note(self) -> str:
        """Which encoder `encode_batch` uses, and why; the ids are the same with each."""
        if "_fast" not in self.__dict__:
            return f"tiktoken encodes: so few texts do not pay for another encoder (from {fast.MIN_CHARS:,} characters)"
        return self._fast[1]

    @cached_property
    def _fast(self) -> tuple[fast.FastEncoder | None, str]:
        if self.pattern != SPLIT_PATTERN:
            return None, "tiktoken encodes: the tokenizer has a split pattern of its own, which only tiktoken takes"
        return fast.make_fast_encoder(self._tokens, self._encode)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, and special tokens their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Raw bytes of ids; raises DataError for an id outside the vocabulary."""
        try:
            return b"".join(map(self._bytes_of.__getitem__, ids))
        except KeyError as error:
            raise self._unknown_id(error.args[0]) from None

    def id_bytes(self, token_id: int) -> bytes:
        """Raw bytes of one id (a special token's are those of its name); raises DataError outside the vocabulary."""
        try:
            return self._bytes_of[token_id]
        except KeyError:
            raise self._unknown_id(token_id) from None

    def _unknown_id(self, token_id: int) -> DataError:
        return DataError(f"id {token_id} is not in the vocabulary of {self.vocab_size} ids")

    def token_bytes(self) -> np.ndarray:
        """Number of raw bytes of each id: int64, shape (vocab_size,); 0 for special tokens.

        Counted on the bytes, never on a decoded string: the id of byte 0x80 alone has 1 byte, though it decodes to
        U+FFFD, which has 3. So the sum over a text's ids is its length in UTF-8.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        lengths[: len(self._tokens)] = [len(token) for token in self._tokens]
        return lengths

    def encode_pieces(self, text: str) -> list[bytes]:
        """Raw bytes of each id of a text, in order: how the text is cut."""
        return [self.id_bytes(i) for i in self.encode(text)]

    def _encode(self, text: str) -> np.ndarray:
        if self.pattern != SPLIT_PATTERN or len(text) < LONG_BLANK_RUN:
            return self._run(self._encoding, text)
        check_unicode(text)
        parts = [
            self._run(self._one_piece if is_run else self._encoding, part) for part, is_run in cut_long_blanks(text)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @cached_property
    def _one_piece(self) -> tiktoken.Encoding:
        return make_encoding(self._ranks, r"[\s\S]+", self.special_ids)

    def _run(self, encoding: tiktoken.Encoding, text: str) -> np.ndarray:
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError as error:
            raise _not_unicode(error) from None
        except ValueError as error:
            raise _pattern_failed(self.pattern, error) from error


def _pattern_failed(pattern: str, error: BaseException) -> DataError:
    return DataError(
        f"the split pattern {pattern!r} failed on a text: {error}",
        hint="such patterns need too much stack on very long runs: use SPLIT_PATTERN, or shorten the runs",
    )


# rustbpe 0.1 counts pairs in 32-bit signed integers. A pair cannot occur more often than there are bytes, so below this
# cap no count overflows and the most frequent pair is really merged first.
MAX_TRAIN_BYTES = 2**31 - 1
# Texts handed over at once: few, because each may be large and all are held in memory.
_TRAIN_BUFFER = 512


def check_train_limits(*, vocab_size: int, max_bytes: int | None) -> None:
    """Raise ConfigError for a vocabulary or a cap that cannot work, before any text is read."""
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise ConfigError(
            f"--vocab-size {vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens take {smallest}",
            hint=f"the smallest is {smallest + 1}; 4096 to 65536 is usual",
        )
    if max_bytes is not None and not 0 < max_bytes <= MAX_TRAIN_BYTES:
        raise ConfigError(
            f"--max-bytes {max_bytes} is out of range: the trainer's counts hold up to {MAX_TRAIN_BYTES} bytes of text",
            hint="a vocabulary of 32768 needs no more than some hundred million bytes",
        )


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: str = SPLIT_PATTERN,
    max_bytes: int | None,
    facts: dict | None = None,
) -> Tokenizer:
    """Learn a vocabulary: merge the most frequent pair (ties: the lowest ids) until ``vocab_size`` ids exist.

    vocab_size: number of ids, special tokens included. max_bytes: read at most this many UTF-8 bytes of text (the text
    that crosses the limit is cut there); None reads up to MAX_TRAIN_BYTES. facts: added to the tokenizer's facts.
    The same texts give the same tokenizer, in any order and on any number of threads.

    Raises ConfigError for sizes that cannot work, DataError where the texts are empty, not Unicode, or too few for the
    vocabulary (naming the largest that they can give).
    """
    check_train_limits(vocab_size=vocab_size, max_bytes=max_bytes)
    limit = MAX_TRAIN_BYTES if max_bytes is None else max_bytes
    make_encoding({bytes([b]): b for b in range(256)}, pattern, {})  # a bad pattern fails before the texts are read
    reader = _TrainReader(texts, limit)
    # A Rust class, without type stubs.
    trainer = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]
    try:
        trainer.train_from_iterator(iter(reader), vocab_size - len(SPECIAL_TOKENS), _TRAIN_BUFFER, pattern)
    except BaseException as error:
        # A Rust panic is no Exception. KeyboardInterrupt and the like pass.
        if type(error).__name__ == "PanicException":
            raise _pattern_failed(pattern, error) from error
        raise
    if reader.num_bytes == 0:
        raise DataError(
            f"no text to train a tokenizer on: {reader.num_documents} texts, all empty",
            hint="check --data: a directory of .parquet (column text), .jsonl or .txt files",
        )
    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])]
    possible = len(tokens) + len(SPECIAL_TOKENS)
    if possible < vocab_size:
        raise DataError(
            f"--vocab-size {vocab_size} is more than this text can give: {reader.num_bytes} bytes in "
            f"{reader.num_documents} texts give at most {possible}",
            hint=f"use --vocab-size {possible} or less, or more text",
        )
    trained = {
        "num_documents": reader.num_documents,
        "num_bytes": reader.num_bytes,
        "max_bytes": limit,
        "stopped_at_max_bytes": reader.stopped,
        "vocab_size": vocab_size,
        "rustbpe_version": metadata.version("rustbpe"),
        "tiktoken_version": metadata.version("tiktoken"),
    }
    return Tokenizer(tokens, pattern=pattern, facts={**trained, **(facts or {})})


class _TrainReader:
    """Texts for the trainer, up to a number of bytes, with counts of what was read."""

    def __init__(self, texts: Iterable[str], limit: int) -> None:
        self.num_documents = 0
        self.num_bytes = 0
        self.stopped = False
        self._texts = texts
        self._limit = limit

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if self.num_bytes >= self._limit:
                self.stopped = True
                return
            try:
                data = text.encode()
            except UnicodeEncodeError as error:
                raise _not_unicode(error) from None
            room = self._limit - self.num_bytes
            if len(data) > room:
                self.stopped = True
                # "ignore" drops the part of a character that the cut leaves at the end.
                text = data[:room].decode("utf-8", errors="ignore")
                data = text.encode()
            self.num_documents += 1
            self.num_bytes += len(data)
            for part, is_run in cut_long_blanks(text):
                if not is_run:
                    yield part
                    continue
                # Parts of a run that is too long for the trainer's stack; the counts of pairs change by one in 100,000.
                for start in range(0, len(part), LONG_BLANK_RUN):
                    yield part[start : start + LONG_BLANK_RUN]
            if self.stopped:
                return
