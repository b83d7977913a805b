"""Tokenised once and kept: the same ids as render, sides, copies, caches that are stale or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_masks import TABLE, expected, json_messages

from firstlight.data.chat import tokenised as tokenised_module
from firstlight.data.chat.counts import ConversationCounts
from firstlight.data.chat.sources import open_conversations
from firstlight.data.chat.tokenised import conversation_hash, encode_conversations, tokenise_conversations
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, parse_messages, render


def talk(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question}!"}]


def test_a_batch_has_the_ids_and_masks_written_down(tokenizer: Tokenizer) -> None:
    conversations = [parse_messages(json_messages(entry), where="t") for entry in TABLE]
    ids, mask, lengths = encode_conversations(conversations, tokenizer, num_threads=2)
    written = [expected(entry, tokenizer) for entry in TABLE]
    assert ids.tolist() == [i for each, _ in written for i in each]
    assert mask.tolist() == [carries for _, each in written for carries in each]
    assert lengths.tolist() == [len(each) for each, _ in written]


def test_no_conversations_are_no_ids(tokenizer: Tokenizer) -> None:
    ids, mask, lengths = encode_conversations([], tokenizer)
    assert (len(ids), len(mask), len(lengths)) == (0, 0, 0)


@pytest.fixture
def source_path(write_rows) -> Path:
    return write_rows([*(talk(f"question {i}") for i in range(200)), "{bad", talk("question 7")])


def open_and_tokenise(path: Path, tokenizer: Tokenizer, cache: Path, **arguments):
    return tokenise_conversations(
        open_conversations(str(path), cache_dir=cache), tokenizer, cache_dir=cache, **arguments
    )


def test_all_are_kept_with_their_sources_and_counts(source_path, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tokenised_module, "BATCH_CONVERSATIONS", 64)
    seen = []
    made = open_and_tokenise(source_path, tokenizer, tmp_path, progress=lambda *news: seen.append(news))
    assert not made.was_kept
    assert [news for news in seen if news[0] == "tokenising conversations"] == [
        ("tokenising conversations", done, None) for done in (64, 128, 192, 201)
    ] + [("tokenising conversations", 201, 201)]
    tokens = made.tokens
    assert len(tokens) == 201
    assert tokens.ids.dtype == np.dtype("<u2")
    for i, row in [(0, 0), (199, 199), (200, 201)]:
        question = f"question {i if i < 200 else 7}"
        document = render([Message.of("user", question), Message.of("assistant", f"{question}!")], tokenizer)
        assert tokens[i].ids.tolist() == document.ids.tolist()
        assert tokens[i].source == f"talks.jsonl:{row}"
    assert made.counts.skipped == {"invalid_json": 1}
    assert tokens.num_duplicates == 1


def test_the_second_time_it_is_taken_from_disk(source_path, tokenizer, tmp_path, monkeypatch) -> None:
    made = open_and_tokenise(source_path, tokenizer, tmp_path)
    monkeypatch.setattr(tokenised_module, "encode_conversations", None)
    kept = open_and_tokenise(source_path, tokenizer, tmp_path)
    assert kept.was_kept
    assert isinstance(kept.tokens.ids, np.memmap)
    assert kept.counts == made.counts
    assert np.array_equal(kept.tokens.ids, made.tokens.ids)
    assert np.array_equal(kept.tokens.mask, made.tokens.mask)
    assert kept.tokens.source(200) == "talks.jsonl:201"
    assert not list((tmp_path / "chat").glob(".*"))


def test_other_bytes_another_tokenizer_or_another_rendering_are_made_anew(
    source_path, tokenizer, byte_tokenizer, tmp_path, monkeypatch
) -> None:
    folders = {open_and_tokenise(source_path, tokenizer, tmp_path).folder}
    folders.add(open_and_tokenise(source_path, byte_tokenizer, tmp_path).folder)
    with monkeypatch.context() as patch:
        patch.setattr(tokenised_module, "RENDER_VERSION", 99)
        folders.add(open_and_tokenise(source_path, tokenizer, tmp_path).folder)
    with source_path.open("a") as file:
        file.write('[{"role": "user", "content": "new"}, {"role": "assistant", "content": "x"}]\n')
    made = open_and_tokenise(source_path, tokenizer, tmp_path)
    assert len(made.tokens) == 202
    assert len({*folders, made.folder}) == 4


@pytest.mark.parametrize("name", ["ids.bin", "mask.bin", "offsets.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_made_anew(name, damage, source_path, tokenizer, tmp_path) -> None:
    made = open_and_tokenise(source_path, tokenizer, tmp_path)
    ids = made.tokens.ids.tolist()
    file = made.folder / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3])
    again = open_and_tokenise(source_path, tokenizer, tmp_path)
    assert not again.was_kept
    assert again.tokens.ids.tolist() == ids


def test_a_failure_leaves_nothing_behind(source_path, tokenizer, tmp_path, monkeypatch) -> None:
    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenised_module, "encode_conversations", fail)
        with pytest.raises(KeyboardInterrupt):
            open_and_tokenise(source_path, tokenizer, tmp_path)
    assert [path.suffix for path in (tmp_path / "chat").iterdir()] in ([], [".lock"])
    assert len(open_and_tokenise(source_path, tokenizer, tmp_path).tokens) == 201


def test_the_sides_are_by_the_hash_of_the_content(source_path, tokenizer, tmp_path, write_rows) -> None:
    made = open_and_tokenise(source_path, tokenizer, tmp_path)
    sides = {side: made.split(side, val_frac=0.3) for side in ("train", "val")}
    names = {side: {each.source for each in tokens} for side, tokens in sides.items()}
    assert len(names["train"]) + len(names["val"]) == 201
    assert not names["train"] & names["val"]
    assert 30 < len(names["val"]) < 90  # 60 on average, with a deviation of 6.5
    for i in range(200):
        question = f"question {i}"
        messages = (Message.of("user", question), Message.of("assistant", f"{question}!"))
        is_val = conversation_hash(messages) / 2**64 < 0.3
        assert (f"talks.jsonl:{i}" in names["val"]) == is_val
    assert ("talks.jsonl:7" in names["val"]) == ("talks.jsonl:201" in names["val"])  # a copy is on the same side
    # In another order, among others, a conversation stays on its side.
    other = open_and_tokenise(
        write_rows([talk("a new one"), *(talk(f"question {i}") for i in reversed(range(200)))], "b.jsonl"),
        tokenizer,
        tmp_path,
    )
    again = {int(each.source.split(":")[1]) for each in other.split("val", val_frac=0.3)} - {0}
    assert {200 - row for row in again} == {int(name.split(":")[1]) for name in names["val"]} - {201}


def test_a_side_that_is_empty_or_no_side_is_an_error(write_rows, tokenizer, tmp_path) -> None:
    made = open_and_tokenise(write_rows([talk("a")]), tokenizer, tmp_path)
    with pytest.raises(DataError, match="none of its 1 conversations is for val"):
        made.split("val", val_frac=0.01)
    assert len(made.split("train")) == 1
    for fraction in (0.0, -1.0, 0.6, float("nan")):
        with pytest.raises(ConfigError, match="--val-frac"):
            made.split("train", val_frac=fraction)


class TwoSides:
    """A source that has its own sides; one conversation is on both."""

    name = "two"
    names = ("two",)
    splits = ("train", "val")
    content_hash = "0" * 64

    def read(self, counts: ConversationCounts, split: str | None = None) -> Iterator:
        rows = {"train": ["a", "b", "c"], "val": ["d", "b"]}
        for side in self.splits if split is None else (split,):
            for question in rows[side]:
                counts.conversations += 1
                yield f"{side}:{question}", (Message.of("user", question), Message.of("assistant", "x"))


def test_a_sources_own_sides_stand_and_copies_leave_validation(tokenizer, tmp_path) -> None:
    made = tokenise_conversations(TwoSides(), tokenizer, cache_dir=tmp_path)
    assert [each.source for each in made.split("train", val_frac=0.5)] == ["train:a", "train:b", "train:c"]
    assert [each.source for each in made.split("val", val_frac=0.5)] == ["val:d"]
    assert made.num_val_in_train == 1
    assert made.has_own_sides


def test_a_source_without_a_conversation_is_an_error(write_rows, tokenizer, tmp_path) -> None:
    with pytest.raises(DataError, match="has no conversation"):
        open_and_tokenise(write_rows([]), tokenizer, tmp_path)


def test_a_cache_that_cannot_be_written_is_an_error(source_path, tokenizer, tmp_path) -> None:
    (tmp_path / "chat").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot write the ids of conversations"):
        open_and_tokenise(source_path, tokenizer, tmp_path)


def test_the_hash_is_of_roles_parts_and_texts() -> None:
    def of(*messages: Message) -> int:
        return conversation_hash(messages)

    base = of(Message.of("user", "a"), Message.of("assistant", "b"))
    others = [
        of(Message.of("user", "a"), Message.of("assistant", "c")),
        of(Message.of("user", "ab"), Message.of("assistant", "")),
        of(Message.of("system", "a"), Message.of("assistant", "b")),
        of(Message.of("user", "a"), Message("assistant", (Part("python", "b"),))),
    ]
    assert len({base, *others}) == 5
    assert base == of(Message.of("user", "a"), Message.of("assistant", "b"))
    assert 0 <= base < 2**64


def test_the_fast_encoder_changes_nothing(tokenizer: Tokenizer) -> None:
    """Past a megabyte the batch goes to another library where there is one."""
    fresh = Tokenizer([tokenizer.id_bytes(i) for i in range(tokenizer.vocab_size - 9)])
    conversations = [parse_messages(json_messages(entry), where="t") for entry in TABLE] * 30
    conversations.append((Message.of("user", "word " * 215_000), Message.of("assistant", "y")))
    ids, _, _ = encode_conversations(conversations, fresh)
    slow = [i for entry in TABLE for i in expected(entry, fresh)[0]]
    assert ids[: len(slow)].tolist() == slow
    assert ids[len(slow) * 29 : len(slow) * 30].tolist() == slow


def test_a_big_vocabulary_is_kept_in_four_bytes(write_rows, tmp_path, monkeypatch, byte_tokenizer) -> None:
    monkeypatch.setattr(byte_tokenizer, "vocab_size", 70_000)
    made = open_and_tokenise(write_rows([talk("a")]), byte_tokenizer, tmp_path)
    assert made.tokens.ids.dtype == np.dtype("<u4")
    assert made.tokens[0].ids.tolist() == [257, 97, 258, 259, 97, 33, 260]
