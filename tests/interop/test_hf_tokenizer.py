"""Claims of interop/hf_tokenizer.py: the tokenizers library gives our ids, on hard text and on all of Unicode."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interop.exported import tokenizer

from firstlight.errors import ConfigError
from firstlight.interop.hf_tokenizer import check_same_ids, read_tokenizer, tokenizer_config, tokenizer_json
from firstlight.tokens.bpe import Tokenizer, train_tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


def fast_one(ours: Tokenizer) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    made.encode_special_tokens = True
    return made


def ids_of(fast: tokenizers.Tokenizer, text: str) -> list[int]:
    return fast.encode(text, add_special_tokens=False).ids


FAST = fast_one(tokenizer())


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="aab c1é\n\t 'tThe<|bos|>日", max_size=60))
def test_ids_are_ours_on_any_text(text: str) -> None:
    assert ids_of(FAST, text) == tokenizer().encode(text)


def test_ids_are_ours_on_every_character_of_the_first_plane() -> None:
    points = [chr(i) for i in range(0x10000) if not 0xD800 <= i < 0xE000]
    for start in range(0, len(points), 512):
        text = "".join(f"a{c}1{c} {c}{c}\n" for c in points[start : start + 512])
        assert ids_of(FAST, text) == tokenizer().encode(text)


def test_runs_of_one_character_are_cut_alike() -> None:
    ours = train_tokenizer(
        ["aaaaaaaaaaaaaaaaaaaaaaaaaaa aaa aaaaa  " * 9, "xaax baab aab abb bbb"], vocab_size=280, max_bytes=None
    )
    fast = fast_one(ours)
    for length in range(1, 70):
        for text in ("a" * length, "b" + "a" * length + "b" * (length % 7), " " * length + "a"):
            assert ids_of(fast, text) == ours.encode(text), text


def test_a_token_that_no_merges_reach_is_taken_whole_in_both() -> None:
    ours = Tokenizer([*(bytes([b]) for b in range(256)), b"wxyz"])
    assert ours.encode("wxyz") == [256]
    assert ids_of(fast_one(ours), "wxyz wxyz") == ours.encode("wxyz wxyz")


def test_the_whole_of_the_hard_texts_gives_our_ids(shared_data: Path) -> None:
    texts: list[str] = []
    for path in sorted((shared_data / "tokenizer").iterdir()):
        if path.is_file():
            # Bytes that are not UTF-8 have no text: they are replaced.
            content = path.read_bytes().decode("utf-8", errors="replace")
            texts += [content, *content.splitlines()]
    assert sum(map(len, texts)) > 100_000
    for text in texts:
        assert ids_of(FAST, text) == tokenizer().encode(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer())))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer(), max_seq_len=64)))
    return tmp_path


@pytest.mark.parametrize("model_type", ["nanochat", "qwen3", "firstlight"])
def test_transformers_puts_bos_in_front_and_keeps_text_as_text(folder: Path, model_type: str) -> None:
    # A class that is named after the type would put its own split pattern in.
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "<|bos|> It's 1234 <|user_start|>"
    assert theirs(text).input_ids == [tokenizer().bos_id, *tokenizer().encode(text)]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (
        tokenizer().bos_id,
        tokenizer().bos_id,
        tokenizer().vocab_size,
    )
    assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text
    batch = theirs(["the cat", "the cat sat on the mat"], padding=True)
    assert batch.attention_mask[0][0] == 0, "prompts go on at their ends, so padding is in front"
    assert batch.attention_mask[0][-1] == 1


def test_our_tokenizer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    back, problems = read_tokenizer(json.loads(json.dumps(tokenizer_json(tokenizer()))), facts=tokenizer().facts)
    assert problems == []
    assert back is not None
    back.save(tmp_path / "back.json")
    tokenizer().save(tmp_path / "ours.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "ours.json").read_bytes()


def test_a_foreign_tokenizer_is_refused_with_all_its_reasons() -> None:
    content = copy.deepcopy(tokenizer_json(tokenizer()))
    content["normalizer"] = {"type": "NFC"}
    content["pre_tokenizer"] = {"type": "ByteLevel"}
    content["added_tokens"][0]["content"] = "<s>"
    back, problems = read_tokenizer(content)
    assert back is None
    said = "\n".join(problems)
    for part in ("NFC", "one regular expression", r"<|bos|>"):
        assert part in said
    content = copy.deepcopy(tokenizer_json(tokenizer()))
    content["model"]["merges"].reverse()
    assert "order of the ids" in read_tokenizer(content)[1][0]
    assert read_tokenizer({"model": {"type": "Unigram"}})[1] == ["the tokenizer's model is 'Unigram', not BPE"]
    assert read_tokenizer([])[1]


def test_a_file_that_the_library_reads_otherwise_is_refused() -> None:
    for pattern, said in ((r"a(", "does not take"), (r"\p{L}|[\s\S]", "otherwise than ours")):
        wrong = copy.deepcopy(tokenizer_json(tokenizer()))
        wrong["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
        with pytest.raises(ConfigError, match=said):
            check_same_ids(wrong, tokenizer())
