"""The fast encoder gives the ids of plain Python's byte-pair encoding and of tiktoken, or leaves the text to tiktoken."""

from __future__ import annotations

import json
import random
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import gigatoken
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firstlight.errors import DataError
from firstlight.tokens import fast
from firstlight.tokens.bpe import SPLIT_PATTERN, Tokenizer, train_tokenizer
from firstlight.tokens.fast import QWEN2_PATTERN, DigitPairs, FastEncoder, make_fast_encoder, model_json

SINGLE_BYTES = [bytes([b]) for b in range(256)]


def _ordinary(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.id_bytes(i) for i in range(tokenizer.bos_id)]


def _fast(tokenizer: Tokenizer) -> FastEncoder:
    encoder, note = make_fast_encoder(_ordinary(tokenizer), tokenizer._encode)
    assert encoder is not None, note
    return encoder


def _without_digit_pairs(tokens: list[bytes]) -> list[bytes]:
    return [token for token in tokens if not (len(token) > 1 and token.isdigit())]


def _shuffled_bytes() -> list[bytes]:
    return random.Random(3).sample(SINGLE_BYTES, 256)


def _hand_made() -> dict[str, list[bytes]]:
    """Vocabularies that training would not give, but a file may hold."""
    return {
        "bytes alone": SINGLE_BYTES,
        "runs": [*SINGLE_BYTES, b"aa", b"bb", b"aaa", b"aaaa", b"aaaaaaa", b"  ", b"   ", b"\n\n", b"00", b"11"],
        # "abc" comes of ab+c and of a+bc; "xyz" is out of reach of any pair, but is a token when it is a whole piece.
        "two ways": [*SINGLE_BYTES, b"bc", b"ab", b"abc", b"cab", b"bcab", b"xyz", b" xyz", b"wxyz", b"12", b"99"],
        "late before early": [*SINGLE_BYTES, b"abab", b"ab", b"ba", b"aba", b"10", b"01"],
        "bytes in another order": [
            *_shuffled_bytes(),
            b"th",
            b"the",
            b" t",
            b"12",
            b"34",
            b"\xc3\xa9",
            b"\xe2\x82\xac",
        ],
        # Tokens that no piece of ours can hold.
        "tokens across pieces": [*SINGLE_BYTES, b"a1", b"1a", b"123", b"1234", b"12", b"23", b"a b", b"\n a", b"!\na"],
    }


@pytest.fixture(scope="module")
def encoders(tokenizer: Tokenizer) -> list[tuple[str, Tokenizer, FastEncoder]]:
    """Trained vocabularies with and without pairs of digits, and hand-made ones."""
    vocabularies = {
        "trained": _ordinary(tokenizer),
        "no pairs of digits": _without_digit_pairs(_ordinary(tokenizer)),
        **_hand_made(),
    }
    made = {name: Tokenizer(tokens) for name, tokens in vocabularies.items()}
    assert made["trained"].encode("2026") != made["no pairs of digits"].encode("2026")
    return [(name, each, _fast(each)) for name, each in made.items()]


MIXED = st.text(
    alphabet=" \n\r\t\x0b\x85\xa0\u2003\u3000'sStTlLvVeErRmMdDſKabcxyz019.,!?-_é́ßЖж中ぁ한ก🙂👍🏽\u200d²½٣Ⅷ〇一\x00\x1c\ufeff",
    max_size=40,
)
DIGITS = st.text(alphabet="0123456789", max_size=30) | st.text(alphabet="0123456789 .,:-aé²½٣\n", max_size=40)
RUNS = st.lists(
    st.tuples(
        st.sampled_from(["a", "0", " ", "\n", ".", "é", "'", "中", "ab", "abc", "12", "\r\n", " x"]), st.integers(1, 70)
    ),
    max_size=5,
).map(lambda parts: "".join(text * times for text, times in parts))
WORDS = st.lists(
    st.sampled_from(
        [
            "the",
            " The",
            "abc",
            "bcab",
            "xyz",
            " xyz",
            "wxyz",
            "naïve",
            "12",
            "100",
            "'ll",
            "'S",
            " Москва",
            "日本語",
            "\n",
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=40) | MIXED | DIGITS | RUNS | WORDS, max_size=5))
@example(["", "12", "", "1", "2", "345"])
@example(["x²", "²x", "²1", "1²", "½", "1½", "٣٣", "a٣b"])
@example(["  ", " \n ", "\n", " a", "a ", "\r\n\r\n  x"])
@example(["'ſ'ſ", "x'S", "'Ll'vE", "''s"])
@example(["<|bos|>", "<|endoftext|>1234"])
def test_ids_are_those_of_the_plain_encoder_and_of_tiktoken(
    oracle: SimpleNamespace, encoders: list[tuple[str, Tokenizer, FastEncoder]], texts: list[str]
) -> None:
    for name, tokenizer, encoder in encoders:
        for num_threads in (1, 2):
            found = encoder.encode_batch(texts, num_threads)
            assert len(found) == len(texts)
            for text, ids in zip(texts, found, strict=True):
                assert encoder.is_certain(text) == (ids is not None)
                if ids is None:
                    continue
                assert ids.dtype == np.uint32
                assert ids.tolist() == tokenizer.encode(text), (name, text)
                if name == "trained" and num_threads == 1:
                    assert ids.tolist() == oracle.encode(text, tokens=_ordinary(tokenizer), pattern=SPLIT_PATTERN)


def test_texts_that_are_not_certain_are_left_to_tiktoken(tokenizer: Tokenizer) -> None:
    encoder = _fast(tokenizer)
    certain = ["", "plain 123", "x² and y³", "½", "٣", "1 ²", "é 12", "🙂", "日本語 12", "\u200d", "Ⅷ."]
    # Two numbers of which one is not 0 to 9; a code point that is not assigned, one of private use, a plane above 3.
    doubtful = ["10²", "²1", "5½", "٣٤", "a ⅧⅧ b", "\u0378", "\ue000", "\U000e0041", "\U0010ffff"]
    assert [encoder.is_certain(text) for text in certain] == [True] * len(certain)
    assert [encoder.is_certain(text) for text in doubtful] == [False] * len(doubtful)
    found = encoder.encode_batch([*certain, *doubtful])
    assert [ids is None for ids in found] == [False] * len(certain) + [True] * len(doubtful)
    assert encoder.encode_batch(doubtful, 2) == [None] * len(doubtful)
    assert encoder.encode_batch([]) == encoder.encode_batch([], 2) == []


def test_every_character_is_cut_as_tiktoken_cuts_it() -> None:
    """Each code point beside a letter, a mark, blanks and line ends, with tokens that show where the pieces end."""
    points = [*range(0x3000), *range(0xA000, 0xAC00, 3), *range(0xD700, 0xD800), *range(0xE000, 0x2FFFF, 37)]
    points = [point for point in points if point < 0xD800 or point > 0xDFFF]
    tokens = dict.fromkeys([*SINGLE_BYTES, b"'s", b"'x"])
    for point in points:
        for context in (f"{chr(point)}x", f"x{chr(point)}", f".{chr(point)}", f" {chr(point)}"):
            data = context.encode()
            tokens |= dict.fromkeys(data[:end] for end in range(2, len(data) + 1))
    tokenizer = Tokenizer(list(tokens))
    encoder = _fast(tokenizer)
    texts = [f"x{c}x .{c} x {c}x.  {c}  x'{c} \n{c}\n {c}\n.{c}\n\n {c}" for c in map(chr, points)]
    found = encoder.encode_batch(texts)
    assert sum(ids is not None for ids in found) > len(points) // 2
    for text, ids in zip(texts, found, strict=True):
        assert ids is None or ids.tolist() == tokenizer.encode(text), ascii(text)


@pytest.mark.parametrize(
    "text", ["a" * 300_000, " " * 1_200_000 + "x", "1" * 99_999, "\n" * 200_000, "é" * 100_000, "ab" * 99_999]
)
def test_very_long_runs(tokenizer: Tokenizer, text: str) -> None:
    ids = _fast(tokenizer).encode_batch([text])[0]
    assert ids is not None
    assert np.array_equal(ids, tokenizer._encode(text))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfffc", 2), ("🙂\ud83dx", 1)])
def test_lone_surrogate_is_refused_and_named(num_threads: int, text: str, position: int) -> None:
    tokenizer = Tokenizer(SINGLE_BYTES)
    with pytest.raises(DataError, match=f"character {position} of a text is the lone surrogate"):
        tokenizer.encode_batch(["a" * fast.MIN_CHARS, text], num_threads)
    assert "gigatoken" in tokenizer.encoder_note


def test_digit_pairs_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    tokens = [*SINGLE_BYTES, b"12", b"21", b"11", b"00", b"07", b"ab"]
    ranks = {token: i for i, token in enumerate(tokens)}

    def by_hand(ids: list[int]) -> list[int]:
        out: list[int] = []
        i = 0
        while i < len(ids):
            pair = b"".join(tokens[each] for each in ids[i : i + 2])
            if len(pair) == 2 and pair.isdigit():
                out += [ranks[pair]] if pair in ranks else ids[i : i + 2]
                i += 2
            else:
                out.append(ids[i])
                i += 1
        return out

    pairs = DigitPairs(tokens)
    for _ in range(200):
        rows = [rng.choice([48, 49, 50, 55, 97], size=rng.integers(0, 9)) for _ in range(rng.integers(1, 7))]
        ids, starts = pairs.join(
            np.concatenate(rows).astype(np.uint32), np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        )
        assert [ids[a:b].tolist() for a, b in pairwise(starts)] == [by_hand(row.tolist()) for row in rows]
        assert starts[-1] == len(ids)


def test_model_json_is_read_alike_by_another_library(tokenizer: Tokenizer, corpus: list[str]) -> None:
    tokens = _without_digit_pairs(_ordinary(tokenizer))
    theirs = tokenizers.Tokenizer.from_str(model_json(tokens, QWEN2_PATTERN).decode())
    single = Tokenizer(tokens, pattern=SPLIT_PATTERN.replace("{1,2}", ""))
    for text in corpus:
        assert theirs.encode(text, add_special_tokens=False).ids == single.encode(text)


def test_a_new_instance_starts_when_the_old_one_has_seen_enough(
    tokenizer: Tokenizer, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def load(model: bytes) -> gigatoken.Tokenizer:
        made.append(gigatoken.Tokenizer.from_json(model))
        return made[-1]

    encoder = FastEncoder(_ordinary(tokenizer), load, name="gigatoken")
    monkeypatch.setattr(fast, "RENEW_CHARS", 50_000)
    monkeypatch.setattr(fast, "_GROUP_CHARS", 10_000)
    expected = [tokenizer.encode(text) for text in corpus]
    for num_threads in (1, 2, 1):
        found = encoder.encode_batch(corpus, num_threads)
        assert [e if ids is None else ids.tolist() for ids, e in zip(found, expected, strict=True)] == expected
    assert 3 < len(made) < 10


def test_threads_may_share_one(tokenizer: Tokenizer, corpus: list[str]) -> None:
    encoder = _fast(tokenizer)
    expected = [tokenizer.encode(text) for text in corpus]
    right: list[bool] = []

    def work(num_threads: int) -> None:
        for _ in range(5):
            found = encoder.encode_batch(corpus, num_threads)
            right.append(all(ids is None or ids.tolist() == e for ids, e in zip(found, expected, strict=True)))

    threads = [threading.Thread(target=work, args=(1 + number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 20


# Which encoder is used


def test_large_batches_are_encoded_fast_and_counted(tokenizer: Tokenizer, corpus: list[str]) -> None:
    fresh = Tokenizer(_ordinary(tokenizer))
    texts = [*corpus, "10² m", "", "<|bos|>"]
    expected = [fresh.encode(text) for text in texts]
    assert [ids.tolist() for ids in fresh.encode_batch(texts)] == expected
    assert fresh.num_encoded_by == {"fast": 0, "tiktoken": len(texts)}
    assert "so few texts" in fresh.encoder_note
    times = 1 + fast.MIN_CHARS // sum(map(len, texts))
    for num_threads in (1, 2):
        assert [ids.tolist() for ids in fresh.encode_batch(texts * times, num_threads)] == expected * times
    assert fresh.encoder_note.startswith("gigatoken 0.10")
    encoder = _fast(fresh)
    left = sum(not encoder.is_certain(text) for text in texts)
    assert 1 <= left <= 3
    assert fresh.num_encoded_by["tiktoken"] == len(texts) + 2 * times * left
    assert fresh.num_encoded_by.total() == len(texts) * (1 + 2 * times)


def test_without_gigatoken_tiktoken_encodes_and_the_note_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    tokenizer = Tokenizer(SINGLE_BYTES)
    ids = tokenizer.encode_batch(["a" * fast.MIN_CHARS])[0]
    assert (ids == 97).all()
    assert len(ids) == fast.MIN_CHARS
    assert "firstlight[fast]" in tokenizer.encoder_note
    assert tokenizer.num_encoded_by == {"fast": 0, "tiktoken": 1}


def test_another_split_pattern_is_for_tiktoken() -> None:
    tokenizer = Tokenizer(SINGLE_BYTES, pattern=r"\S+|\s+")
    tokenizer.encode_batch(["a" * fast.MIN_CHARS])
    assert "split pattern of its own" in tokenizer.encoder_note
    assert tokenizer.num_encoded_by == {"fast": 0, "tiktoken": 1}


def test_an_encoder_that_is_wrong_or_refuses_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer([*SINGLE_BYTES, b"12", b"he"])

    class Wrong:
        def encode(self, text: str) -> np.ndarray:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda model: Wrong())
    encoder, note = make_fast_encoder(_ordinary(tokenizer), tokenizer._encode)
    assert encoder is None
    assert "gives other ids for the text" in note

    def refuse(model: bytes) -> None:
        raise ValueError("Unknown pre_tokenizer Split regexes")

    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", refuse)
    encoder, note = make_fast_encoder(_ordinary(tokenizer), tokenizer._encode)
    assert encoder is None
    assert "Unknown pre_tokenizer" in note


# Real text


def test_the_collection_of_hard_text(tokenizer: Tokenizer, shared_data: Path) -> None:
    folder = shared_data / "tokenizer"
    texts = [path.read_bytes().decode("utf-8", errors="replace") for path in sorted(folder.iterdir())]
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        texts += [row["text"] if "text" in row else bytes.fromhex(row["hex"]).decode(errors="replace") for row in rows]
    texts += [line for text in texts for line in text.split("\n")]
    for each in (tokenizer, Tokenizer(_without_digit_pairs(_ordinary(tokenizer)))):
        found = _fast(each).encode_batch(texts)
        assert sum(ids is None for ids in found) < len(texts) // 20
        for text, ids in zip(texts, found, strict=True):
            assert ids is None or ids.tolist() == each.encode(text), text[:80]


def test_real_documents(shared_data: Path) -> None:
    import pyarrow.parquet as pq

    path = shared_data / "corpus" / "wikipedia_en" / "shard_00006.parquet"
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()[:400]
    tokenizer = train_tokenizer(texts, vocab_size=4096, max_bytes=None)
    found = _fast(tokenizer).encode_batch(texts, 2)
    assert sum(ids is None for ids in found) < 20
    for text, ids in zip(texts, found, strict=True):
        assert ids is None or np.array_equal(ids, tokenizer._encode(text))
