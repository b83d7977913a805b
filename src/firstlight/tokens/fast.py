"""Many texts to ids with ``gigatoken``, where it is installed (``pip install 'firstlight[fast]'``), exactly as ``tiktoken``.

gigatoken cuts texts with hand-written code instead of a regular expression and remembers the ids of each piece, which
is many times faster; but it knows only the patterns of some public models, not our digits in groups of two. So it is
given a pattern that cuts each digit off alone and equals ours in all else (QWEN2_PATTERN), and pairs of digits are put
together afterwards. What is not certain to come out the same is left to tiktoken:

- texts in which a number that is not one of 0 to 9 (², ½, ٣) stands beside another digit or number: the pair is one
  piece of ours, whose bytes may merge across the two characters;
- texts with characters that this Python's Unicode tables do not know or hold no text for (unassigned, private use,
  planes 4 to 16): two engines with tables of different years may class them differently.
"""

from __future__ import annotations

import json
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from firstlight.tokens.samples import SAMPLES

# The pattern of Qwen2's tokenizer, letter for letter as gigatoken knows it. Against SPLIT_PATTERN: `\p{N}` for
# `\p{N}{1,2}`; the rest takes the same pieces. Possessive marks change nothing where what follows cannot match what
# was taken; and since `\s*` is greedy, `\s*[\r\n]` already ends behind the last line end of the blanks, as `\s*[\r\n]+`.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# From this many characters on the encoder is set up: that takes about a tenth of a second, as long as tiktoken takes for
# a megabyte.
MIN_CHARS = 1 << 20
# gigatoken 0.10 never forgets a piece: 6 to 11 bytes for each byte of unseen words. A new one starts empty.
RENEW_CHARS = 64 << 20
# Texts whose ids are looked at together.
_GROUP_CHARS = 1 << 20

_PLAIN, _DIGIT, _NUMBER, _DOUBTFUL = range(4)
_NUM_KNOWN = 0x40000  # planes 0 to 3; all above is doubtful
_CHECKS = (
    "It's he'LL wE'Re I'd'M 'ſ 'S'x ''s a's'tb",
    "0 1 12 123 1234 a1b22c333 1.5 12:30 2026-11-25 x² ½ 00000 9 99 999 \n7\n88 \t9",
    " a  b   c\n\n d \r\n\r\n  \n   e\t\tf \t g\u00a0h\u3000i  \n",
    "...!? --x -- x\n\n!!\r\n?! (a) {b}\n",
    "   ",
    "\n",
    "<|bos|><|endoftext|>",
    "aaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbb" + "é" * 40 + "🙂" * 20,
    "\x00\x01\x1c\x1f\x7f\x85 e\u0301 \u200d \u2028 \ufeff",
)


def _character_kinds() -> np.ndarray:
    """Kind of each code point of planes 0 to 3, and _DOUBTFUL for all above in one more entry: uint8, (0x40001,)."""
    categories = [unicodedata.category(chr(point)) for point in range(_NUM_KNOWN)]
    kinds = np.full(_NUM_KNOWN + 1, _DOUBTFUL, dtype=np.uint8)
    kinds[:-1] = [
        _NUMBER if category[0] == "N" else _DOUBTFUL if category in ("Cn", "Co", "Cs") else _PLAIN
        for category in categories
    ]
    kinds[ord("0") : ord("9") + 1] = _DIGIT
    return kinds


def byte_names() -> dict[int, int]:
    """The character, as a code point, that files of the tokenizers library write for each byte.

    Visible characters of Latin-1 stay, the others go to U+0100 and up (GPT-2, 2019).

    >>> chr(byte_names()[ord("a")]), chr(byte_names()[ord(" ")])
    ('a', 'Ġ')
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{b: b for b in visible}, **{b: 0x100 + i for i, b in enumerate(hidden)}}


def model_json(tokens: Sequence[bytes], pattern: str) -> bytes:
    """A ``tokenizer.json`` in the form of the tokenizers library that merges as tiktoken does with these ranks.

    tiktoken joins the leftmost pair of neighbours whose joined bytes have the lowest rank, however the pair is divided, and
    takes a piece that is a token as it is. So each token is listed with every division into two tokens, in the order of
    ranks, and ``ignore_merges`` is set. No special tokens: what looks like one stays text.
    """
    names = byte_names()
    token_names = [token.decode("latin-1").translate(names) for token in tokens]
    known = set(token_names)
    merges = [
        [name[:i], name[i:]]
        for name in token_names
        for i in range(1, len(name))
        if name[:i] in known and name[i:] in known
    ]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocabulary = {name: i for i, name in enumerate(token_names)}
    content = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": True},
    }
    return json.dumps(content).encode()


class DigitPairs:
    """Puts single digits together as ``\\p{N}{1,2}`` does: from the left of each run, where the pair is a token."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        ranks = {token: i for i, token in enumerate(tokens)}
        self._digit_of = np.full(len(tokens), 255, dtype=np.uint8)
        self._pair_ids = np.full((10, 10), -1, dtype=np.int64)
        for a in range(10):
            self._digit_of[ranks[b"%d" % a]] = a
            for b in range(10):
                self._pair_ids[a, b] = ranks.get(b"%d%d" % (a, b), -1)
        self._any = bool((self._pair_ids >= 0).any())

    def join(self, ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids with pairs of digits joined, and where each text now starts.

        ids: uint32, (N,): the ids of some texts one after the other. starts: int64, (texts,), not falling.
        """
        digits = self._digit_of[ids]
        places = np.flatnonzero(digits < 10) if self._any else np.empty(0, dtype=np.int64)
        if len(places) < 2:
            return ids, starts
        begins_run = np.ones(len(places), dtype=bool)
        begins_run[1:] = places[1:] != places[:-1] + 1
        first_of_text = np.searchsorted(places, starts)
        begins_run[first_of_text[first_of_text < len(places)]] = True
        counted = np.arange(len(places))
        place_in_run = counted - np.maximum.accumulate(np.where(begins_run, counted, 0))
        left = np.flatnonzero((place_in_run[:-1] % 2 == 0) & ~begins_run[1:])
        pair_ids = self._pair_ids[digits[places[left]], digits[places[left + 1]]]
        joined = places[left[pair_ids >= 0]]
        ids = ids.copy()
        ids[joined] = pair_ids[pair_ids >= 0]
        stays = np.ones(len(ids), dtype=bool)
        stays[joined + 1] = False
        return ids[stays], starts - np.searchsorted(joined + 1, starts)


class Library(Protocol):
    """What is used of a gigatoken tokenizer."""

    def encode(self, input: str) -> np.ndarray:
        """uint32 ids of a text. Holds Python's lock; not for two threads at once."""
        ...

    def encode_batch(self, inputs: list[str], *, parallel: bool) -> Any:
        """An awkward array with the ids of each text. Works outside Python's lock."""
        ...


class FastEncoder:
    """Ids of many texts; None for those that tiktoken must do. Threads may share one: they take turns.

    name: the library and its version.
    """

    def __init__(self, tokens: Sequence[bytes], load: Callable[[bytes], Library], *, name: str) -> None:
        """tokens: raw bytes of each id by rank, 256 single bytes first. load: makes the library's object of a ``model_json``."""
        self.name = name
        self._load = load
        self._model = model_json(tokens, QWEN2_PATTERN)
        self._library = load(self._model)
        self._num_chars = 0
        self._kinds = _character_kinds()
        self._pairs = DigitPairs(tokens)
        self._call_lock = threading.Lock()
        self._count_lock = threading.Lock()

    def is_certain(self, text: str) -> bool:
        """Whether the ids are certain to be the same. Raises UnicodeEncodeError for a lone surrogate."""
        if text.isascii():
            return True
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        kinds = self._kinds.take(points, mode="clip")
        highest = kinds.max()
        if highest < _NUMBER:
            return True
        if highest == _DOUBTFUL:
            return False
        is_number = kinds >= _DIGIT
        touching = is_number[1:] & is_number[:-1]
        return not (touching & (np.maximum(kinds[1:], kinds[:-1]) == _NUMBER)).any()

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray | None]:
        """uint32 ids of each text, or None. Raises UnicodeEncodeError for a lone surrogate."""
        with self._call_lock:
            if num_threads == 1:
                return [ids for group in _groups(texts) for ids in self._encode_group(group, _in_turn)]
            with ThreadPoolExecutor(num_threads) as pool:
                groups = pool.map(lambda group: self._encode_group(group, _unlocked), _groups(texts))
                return [ids for group in groups for ids in group]

    def _encode_group(
        self, texts: list[str], run: Callable[[Library, list[str]], tuple[np.ndarray, np.ndarray]]
    ) -> list[np.ndarray | None]:
        certain = [self.is_certain(text) for text in texts]
        chosen = [text for text, is_chosen in zip(texts, certain, strict=True) if is_chosen]
        if not chosen:
            return [None] * len(texts)
        ids, starts = self._pairs.join(*run(self._library_for(chosen), chosen))
        spans = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        return [ids[slice(*next(spans))] if is_chosen else None for is_chosen in certain]

    def _library_for(self, texts: list[str]) -> Library:
        with self._count_lock:
            if self._num_chars >= RENEW_CHARS:
                self._library = self._load(self._model)
                self._num_chars = 0
            self._num_chars += sum(map(len, texts))
            return self._library


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    num_chars = 0
    for text in texts:
        group.append(text)
        num_chars += len(text)
        if num_chars >= _GROUP_CHARS:
            yield group
            group, num_chars = [], 0
    if group:
        yield group


def _in_turn(library: Library, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    # Without the library's own batches, which would import awkward: a third of a second in each worker of a build.
    parts = [library.encode(text) for text in texts]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def _unlocked(library: Library, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    import awkward  # comes with gigatoken

    # Its own threads would be as many as there are cores.
    rows = library.encode_batch(texts, parallel=False)
    return awkward.flatten(rows).to_numpy(), np.concatenate([[0], np.cumsum(awkward.num(rows).to_numpy())])


def check_samples(encoder: FastEncoder, exact: Callable[[str], np.ndarray]) -> str | None:
    """Text that an encoder gets wrong among some hard ones, or None. exact: ids by tiktoken."""
    texts = [*_CHECKS, *SAMPLES.values()]
    for text, ids in zip(texts, encoder.encode_batch(texts), strict=True):
        if ids is not None and not np.array_equal(ids, exact(text)):
            return text
    return None


def make_fast_encoder(tokens: Sequence[bytes], exact: Callable[[str], np.ndarray]) -> tuple[FastEncoder | None, str]:
    """The fast encoder of a vocabulary whose pattern is SPLIT_PATTERN, or None; and a sentence that says why.

    exact: ids of one text by tiktoken. The encoder is compared with it on some hard texts before it is trusted.
    """
    try:
        import gigatoken
    except ImportError as error:
        return None, f"tiktoken encodes: no gigatoken ({error}); pip install 'firstlight[fast]' is several times faster"
    name = f"gigatoken {metadata.version('gigatoken')}"
    try:
        encoder = FastEncoder(tokens, gigatoken.Tokenizer.from_json, name=name)
        wrong = check_samples(encoder, exact)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        return None, f"tiktoken encodes: {name} does not take this vocabulary: {type(error).__name__}: {error}"
    if wrong is not None:
        return None, f"tiktoken encodes: {name} gives other ids for the text {wrong[:40]!r}"
    return encoder, f"{name} encodes, with the same ids as tiktoken; texts where that is not certain go to tiktoken"
