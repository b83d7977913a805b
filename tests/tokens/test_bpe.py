"""Byte-level BPE against a plain Python one: training, encoding, bytes per id, and bad input."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.errors import ConfigError, DataError
from firstlight.tokens import bpe
from firstlight.tokens.bpe import SPLIT_PATTERN, Tokenizer, train_tokenizer

SINGLE_BYTES = [bytes([b]) for b in range(256)]


def _ordinary(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.id_bytes(i) for i in range(tokenizer.vocab_size - 9)]


# Training


def test_training_makes_the_merges_of_the_plain_trainer(oracle: SimpleNamespace, corpus: list[str]) -> None:
    texts = corpus[::3]
    tokenizer = train_tokenizer(texts, vocab_size=450, max_bytes=None)
    assert _ordinary(tokenizer) == oracle.train(texts, num_ranks=441, pattern=SPLIT_PATTERN)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab c1é\n", min_size=1, max_size=30), min_size=1, max_size=8))
def test_training_breaks_ties_and_overlaps_like_the_plain_trainer(oracle: SimpleNamespace, texts: list[str]) -> None:
    expected = oracle.train(texts, num_ranks=280, pattern=SPLIT_PATTERN)
    if len(expected) == 256:
        with pytest.raises(DataError, match="at most 265"):
            train_tokenizer(texts, vocab_size=266, max_bytes=None)
    else:
        tokenizer = train_tokenizer(texts, vocab_size=len(expected) + 9, max_bytes=None)
        assert _ordinary(tokenizer) == expected


def test_most_frequent_pair_is_merged_first() -> None:
    # "in" 3 times, "at" twice, everything else once.
    tokenizer = train_tokenizer(["in at in at in xy"], vocab_size=268, max_bytes=None)
    # Then, of the pairs that occur twice, the lowest ids: (32, 97) before (32, 256), which is " " + "in".
    assert _ordinary(tokenizer)[256:] == [b"in", b" a", b" in"]


def test_same_texts_give_the_same_tokenizer_in_any_order(corpus: list[str], tokenizer: Tokenizer) -> None:
    shuffled = list(corpus)
    random.Random(0).shuffle(shuffled)
    again = train_tokenizer(shuffled, vocab_size=tokenizer.vocab_size, max_bytes=None)
    assert again.content_hash == tokenizer.content_hash


def test_same_texts_give_the_same_tokenizer_on_one_thread_in_another_process(tokenizer: Tokenizer) -> None:
    # The trainer's hash maps are seeded anew in each process; ties must not depend on that.
    script = (
        "from firstlight.tokens.bpe import train_tokenizer\n"
        "from firstlight.tokens.samples import SAMPLES\n"
        "print(train_tokenizer(SAMPLES.values(), vocab_size=700, max_bytes=None).content_hash)\n"
    )
    from firstlight.tokens.samples import SAMPLES

    here = train_tokenizer(SAMPLES.values(), vocab_size=700, max_bytes=None).content_hash
    env = {**os.environ, "RAYON_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert there.stdout.strip() == here


def test_facts_say_what_was_read() -> None:
    tokenizer = train_tokenizer(["naïve ideas", "", "more ideas"], vocab_size=270, max_bytes=None, facts={"data": "x"})
    assert tokenizer.facts["num_documents"] == 3
    assert tokenizer.facts["num_bytes"] == len("naïve ideas".encode()) + len("more ideas")
    assert tokenizer.facts["vocab_size"] == 270
    assert tokenizer.facts["stopped_at_max_bytes"] is False
    assert tokenizer.facts["data"] == "x"
    assert tokenizer.facts["rustbpe_version"]


def test_max_bytes_stops_the_reading_and_cuts_the_last_text_between_characters() -> None:
    def texts():
        yield "abab " * 10
        yield "é" * 100
        raise AssertionError("read on after the limit")

    tokenizer = train_tokenizer(texts(), vocab_size=266, max_bytes=61)
    assert tokenizer.facts["num_bytes"] == 60
    assert tokenizer.facts["num_documents"] == 2
    assert tokenizer.facts["stopped_at_max_bytes"] is True


def test_max_bytes_of_exactly_the_text_is_no_early_stop() -> None:
    assert train_tokenizer(["abab"], vocab_size=266, max_bytes=4).facts["stopped_at_max_bytes"] is False


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_empty_corpus_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match=f"no text to train a tokenizer on: {len(texts)} texts"):
        train_tokenizer(texts, vocab_size=1000, max_bytes=None)


def test_vocabulary_beyond_the_corpus_names_the_largest_possible_which_works() -> None:
    # Pairs of "abcd": ab, then abc, then abcd: three merges.
    texts = ["abcd abcd"]
    with pytest.raises(
        DataError, match=r"--vocab-size 2000 is more than .* 9 bytes in 1 texts give at most 269"
    ) as error:
        train_tokenizer(texts, vocab_size=2000, max_bytes=None)
    assert "269" in error.value.hint
    assert train_tokenizer(texts, vocab_size=269, max_bytes=None).vocab_size == 269
    with pytest.raises(DataError):
        train_tokenizer(texts, vocab_size=270, max_bytes=None)


@pytest.mark.parametrize("vocab_size", [-1, 0, 1, 256, 265])
def test_vocabulary_without_room_for_a_merge_is_refused(vocab_size: int) -> None:
    with pytest.raises(ConfigError, match=f"--vocab-size {vocab_size} is too small") as error:
        train_tokenizer(["abab"], vocab_size=vocab_size, max_bytes=None)
    assert "266" in error.value.hint


@pytest.mark.parametrize("max_bytes", [-1, 0, 2**31])
def test_max_bytes_where_32_bit_counts_could_overflow_or_nothing_is_read_is_refused(max_bytes: int) -> None:
    with pytest.raises(ConfigError, match=f"--max-bytes {max_bytes} is out of range"):
        train_tokenizer(["abab"], vocab_size=266, max_bytes=max_bytes)


def test_without_a_cap_training_still_stops_below_2_to_the_31_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A pair occurs at most once per byte, so no count can pass the cap; the real cap is too large for a test.
    assert bpe.MAX_TRAIN_BYTES < 2**31
    monkeypatch.setattr(bpe, "MAX_TRAIN_BYTES", 100)
    tokenizer = train_tokenizer(("abab " for _ in range(10**9)), vocab_size=266, max_bytes=None)
    assert tokenizer.facts["num_bytes"] == 100
    assert tokenizer.facts["stopped_at_max_bytes"] is True


def test_bad_pattern_is_refused_before_any_text_is_read() -> None:
    def texts():
        raise AssertionError("read")
        yield

    with pytest.raises(ConfigError, match="not a valid regular expression"):
        train_tokenizer(texts(), vocab_size=300, max_bytes=None, pattern="(")


def test_lone_surrogate_in_training_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"character 3 of a text is the lone surrogate '\\ud800'"):
        train_tokenizer(["fine", "abc\ud800"], vocab_size=266, max_bytes=None)


def test_error_of_the_texts_iterator_comes_through() -> None:
    def texts():
        yield "abab"
        raise DataError("file x is damaged")

    with pytest.raises(DataError, match="file x is damaged"):
        train_tokenizer(texts(), vocab_size=266, max_bytes=None)


# Splitting: trainer and encoder


def test_digits_are_cut_in_twos_by_trainer_and_encoder() -> None:
    numbers = [f"{i * 1234567}" for i in range(2000)]
    tokenizer = train_tokenizer(numbers, vocab_size=365, max_bytes=None)
    learned = _ordinary(tokenizer)[256:]
    assert {len(token) for token in learned} == {2}
    assert len(learned) == 100
    assert tokenizer.encode_pieces("1234567") == [b"12", b"34", b"56", b"7"]


def test_one_pattern_serves_training_and_encoding() -> None:
    pattern = r"\p{N}{1,3}|\P{N}+"
    tokenizer = train_tokenizer([f"{i:03d}" for i in range(1000)] * 2, vocab_size=600, max_bytes=None, pattern=pattern)
    assert tokenizer.pattern == pattern
    assert [len(piece) for piece in tokenizer.encode_pieces("1234567")][-1] == 1
    assert {len(token) for token in _ordinary(tokenizer)[256:]} == {2, 3}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", " world"]),
        ("don't WE'LL", ["don", "'t", " WE", "'LL"]),
        ("a  b", ["a", " ", " b"]),
        ("x = 12345;", ["x", " =", " ", "12", "34", "5", ";"]),
        ("end.\n\nNext", ["end", ".\n\n", "Next"]),
        ("  \n  z", ["  \n", " ", " z"]),
        ("tail   ", ["tail", "   "]),
        ("(word)", ["(word", ")"]),
        ("été 日本", ["été", " 日本"]),
    ],
)
def test_pattern_cuts_as_documented(text: str, pieces: list[str]) -> None:
    # With every piece in the vocabulary, each piece is one token.
    vocabulary = [*SINGLE_BYTES]
    for piece in dict.fromkeys(pieces):
        for end in range(2, len(piece.encode()) + 1):
            if piece.encode()[:end] not in vocabulary:
                vocabulary.append(piece.encode()[:end])
    assert Tokenizer(vocabulary).encode_pieces(text) == [piece.encode() for piece in pieces]


def test_letters_of_multiple_choice_are_one_token_each_in_prompt_and_answer(tokenizer: Tokenizer) -> None:
    prompt = "Which is it?\nAnswer:"
    for letter in "ABCD":
        answer = tokenizer.encode(f" {letter}")
        assert len(answer) == 1
        assert tokenizer.encode(f"{prompt} {letter}") == tokenizer.encode(prompt) + answer
        assert tokenizer.encode(letter) != answer


# Encoding


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet=" \n\r\tab'slé1🙂<|>", max_size=60))
def test_any_text_encodes_like_the_plain_encoder_and_comes_back(
    oracle: SimpleNamespace, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text, tokens=_ordinary(tokenizer), pattern=SPLIT_PATTERN)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_corpus_encodes_like_the_plain_encoder(
    oracle: SimpleNamespace, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    text = "\n\n".join(corpus)[:30_000]
    assert tokenizer.encode(text) == oracle.encode(text, tokens=_ordinary(tokenizer), pattern=SPLIT_PATTERN)


def test_every_byte_string_of_any_text_has_ids_with_the_smallest_vocabulary() -> None:
    tokenizer = Tokenizer(SINGLE_BYTES)
    assert tokenizer.encode("é🙂") == list("é🙂".encode())
    assert tokenizer.vocab_size == 265


@pytest.mark.parametrize("name", ["<|bos|>", "<|user_start|>", "<|endoftext|>", "<|output_end|>"])
def test_what_looks_like_a_special_token_stays_text(oracle: SimpleNamespace, tokenizer: Tokenizer, name: str) -> None:
    for text in (name, f"a{name}b", name * 3, f" {name} "):
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.bos_id
        assert tokenizer.decode(ids) == text
        assert ids == oracle.encode(text, tokens=_ordinary(tokenizer), pattern=SPLIT_PATTERN)
        assert tokenizer.encode_batch([text])[0].tolist() == ids


def test_special_ids_are_the_last_and_decode_to_their_names(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.special_ids.values()) == list(range(1491, 1500))
    assert tokenizer.bos_id == tokenizer.special_ids["<|bos|>"] == 1491
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("hi")]) == "<|bos|>hi"


def test_batch_gives_the_ids_of_encode_as_uint32(tokenizer: Tokenizer, corpus: list[str]) -> None:
    texts = [*corpus, "", "<|bos|>"]
    expected = [tokenizer.encode(text) for text in texts]
    for num_threads in (1, 3):
        batch = tokenizer.encode_batch(texts, num_threads=num_threads)
        assert [ids.tolist() for ids in batch] == expected
        assert {ids.dtype for ids in batch} == {np.dtype(np.uint32)}
    assert tokenizer.encode_batch([]) == []


def test_threads_may_share_one_tokenizer(tokenizer: Tokenizer, corpus: list[str]) -> None:
    expected = [tokenizer.encode(text) for text in corpus]
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        found[number] = [tokenizer.encode(text) for text in corpus]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == expected for number in range(4))


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfffc", 2), ("🙂\ud83dx", 1)])
def test_lone_surrogate_is_refused_and_named(tokenizer: Tokenizer, text: str, position: int) -> None:
    for attempt in (tokenizer.encode, lambda t: tokenizer.encode_batch([t], num_threads=2)):
        with pytest.raises(DataError, match=f"character {position} of a text is the lone surrogate"):
            attempt(text)
    assert "replace" in str(_error(tokenizer, text).hint)


def _error(tokenizer: Tokenizer, text: str) -> DataError:
    with pytest.raises(DataError) as caught:
        tokenizer.encode(text)
    return caught.value


def test_lone_surrogate_after_a_long_run_is_named_by_its_place_in_the_whole_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="character 200001 of a text"):
        tokenizer.encode("x" + " " * 200_000 + "\ud800")


# Decoding


def test_ids_that_are_not_utf8_decode_to_replacement_signs_and_raw_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0x80, 0x41]) == "�A"
    assert tokenizer.decode_bytes([0x80, 0x41]) == b"\x80A"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(np.array([0x41, 0x42], dtype=np.uint16)) == "AB"


@pytest.mark.parametrize("token_id", [-1, 1500, 10**9])
def test_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(DataError, match=f"id {token_id} is not in the vocabulary of 1500 ids"):
        tokenizer.decode([0x41, token_id])


# Bytes per id


def test_token_of_one_byte_that_is_no_text_counts_one_byte(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.shape == (1500,)
    assert lengths.dtype == np.int64
    # Decoded alone, these are U+FFFD, which has 3 bytes.
    assert lengths[0x80:0x100].tolist() == [1] * 128


@pytest.mark.parametrize("text", ["hi 🐕!", "naïve", "日本語", "👨‍👩‍👧‍👦", "a\x00b", ""])
def test_bytes_of_the_ids_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_special_tokens_count_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes()[list(tokenizer.special_ids.values())].tolist() == [0] * 9
    assert (tokenizer.token_bytes()[:1491] > 0).all()


# Identity


def test_content_hash_is_sha256_over_length_prefixed_parts() -> None:
    tokenizer = Tokenizer([*SINGLE_BYTES, b"ab"], pattern="a+", special_tokens=("<|bos|>", "<|x|>"))
    parts = [b"a+", (2).to_bytes(8, "little"), b"<|bos|>", b"<|x|>", *SINGLE_BYTES, b"ab"]
    joined = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert tokenizer.content_hash == hashlib.sha256(b"firstlight-bpe" + joined).hexdigest()


def test_content_hash_tells_ranks_pattern_and_special_tokens_apart_but_not_facts() -> None:
    base = [*SINGLE_BYTES, b"ab", b"bc"]
    variants = [
        Tokenizer(base),
        Tokenizer([*SINGLE_BYTES, b"bc", b"ab"]),
        Tokenizer(base, pattern=r"[\s\S]+"),
        Tokenizer(base, special_tokens=("<|bos|>",)),
    ]
    assert len({variant.content_hash for variant in variants}) == 4
    assert Tokenizer(base, facts={"a": 1}).content_hash == variants[0].content_hash


# Very long texts


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, "^" * 10**6, "1" * 10**6, "🙂" * 250_000, "\n" * 10**6, "the cat sat " * 850_000],
    ids=["letter", "mark", "digit", "emoji", "line ends", "10 MB line"],
)
def test_long_run_takes_linear_time_and_comes_back(tokenizer: Tokenizer, text: str) -> None:
    start_s = time.perf_counter()
    ids = tokenizer.encode(text)
    # About 0.1 s per million on one slow core; a quadratic algorithm needs hours.
    assert time.perf_counter() - start_s < 30
    assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize(
    ("blank", "end"),
    [(" ", ""), (" ", "x"), (" ", "5"), (" ", "\n"), (" ", "\nx"), (" ", "\tx"), ("\t", "x"), ("\u3000", "x")],
)
def test_million_blanks_do_not_break_the_pattern_engine(tokenizer: Tokenizer, blank: str, end: str) -> None:
    text = "word" + blank * 1_100_000 + end
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" \u00a0\t\r\nab1.'", min_size=1, max_size=60))
def test_cuts_at_long_runs_never_change_the_ids(oracle: SimpleNamespace, tokenizer: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Runs of 3 count as long, so that short texts have many cuts.
        patch.setattr(bpe, "LONG_BLANK_RUN", 3)
        patch.setattr(bpe, "_LONG_BLANKS", bpe.re.compile(bpe._LONG_BLANKS.pattern.replace("100000", "3")))
        parts = list(bpe.cut_long_blanks(text))
        assert "".join(part for part, _ in parts) == text
        ids = tokenizer.encode(text)
    assert ids == oracle.encode(text, tokens=_ordinary(tokenizer), pattern=SPLIT_PATTERN)


def test_long_runs_encode_as_the_whole_text_does_just_below_the_engines_limit(tokenizer: Tokenizer) -> None:
    text = "a. \n" + " " * 300_000 + "b\t" + "\t" * 150_000 + "\nc" + " " * 120_000
    assert len(list(bpe.cut_long_blanks(text))) == 4
    whole = tokenizer._encoding.encode_ordinary(text)
    assert tokenizer.encode(text) == whole


def test_training_reads_a_million_blanks() -> None:
    text = "ab " * 20 + " " * 1_100_000 + "x"
    tokenizer = train_tokenizer([text], vocab_size=270, max_bytes=None)
    assert tokenizer.facts["num_bytes"] == len(text)
    assert b"  " in _ordinary(tokenizer)


def test_pattern_that_overflows_the_engine_is_an_ordinary_error() -> None:
    tokenizer = Tokenizer(SINGLE_BYTES, pattern=r"\s+(?!\S)|\s|\S+")
    with pytest.raises(DataError, match="failed on a text"):
        tokenizer.encode(" " * 1_100_000 + "x")
    with pytest.raises(DataError, match="failed on a text"):
        train_tokenizer(["a" + "\n " * 600_000 + "x"], vocab_size=266, max_bytes=None, pattern=tokenizer.pattern)
