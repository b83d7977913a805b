"""Numbers about conversations, and one of them token by token."""

from __future__ import annotations

from pathlib import Path

from firstlight.data.chat.measure import marks_of_ids, marks_of_text, token_facts
from firstlight.data.chat.sources import open_conversations
from firstlight.data.chat.tokenised import tokenise_conversations
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, render

TALK = (Message.of("user", "é"), Message.of("assistant", "ab"))


def test_marks_of_each_id(byte_tokenizer: Tokenizer) -> None:
    marks = marks_of_ids(render(TALK, byte_tokenizer), byte_tokenizer)
    assert [(mark.raw, mark.is_special, mark.carries_loss, mark.id) for mark in marks] == [
        (b"<|bos|>", True, False, 256),
        (b"<|user_start|>", True, False, 257),
        (b"\xc3", False, False, 0xC3),
        (b"\xa9", False, False, 0xA9),
        (b"<|user_end|>", True, False, 258),
        (b"<|assistant_start|>", True, False, 259),
        (b"a", False, True, 97),
        (b"b", False, True, 98),
        (b"<|assistant_end|>", True, True, 260),
    ]


def test_marks_without_a_tokenizer() -> None:
    assert [(mark.raw.decode(), mark.is_special, mark.carries_loss) for mark in marks_of_text(TALK)] == [
        ("<|bos|>", True, False), ("<|user_start|>", True, False), ("é", False, False), ("<|user_end|>", True, False),
        ("<|assistant_start|>", True, False), ("ab", False, True), ("<|assistant_end|>", True, True),
    ]  # fmt: skip


def test_facts(write_rows, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": "q" * i}, {"role": "assistant", "content": "a" * (2 * i)}] for i in (1, 2, 3, 3)
    ]
    source = open_conversations(str(write_rows(talks)), cache_dir=tmp_path)
    facts = token_facts(tokenise_conversations(source, byte_tokenizer, cache_dir=tmp_path))
    # Four special tokens in each; loss on the answer and its end.
    assert facts["tokens"] == 7 + 10 + 13 + 13
    assert facts["targets"] == 3 + 5 + 7 + 7
    assert facts["targets_frac"] == 22 / 43
    assert facts["bytes_per_token"] == (3 + 6 + 9 + 9) / 43
    assert (facts["duplicates"], facts["without_target"], facts["train"] + facts["val"]) == (1, 0, 4)
    assert facts["tokens_per_conversation"]["min"] == 7
    assert facts["tokens_per_conversation"]["max"] == 13
    assert facts["targets_per_conversation"]["p50"] in (5, 7)
    assert facts["sides"] == "by content hash"
