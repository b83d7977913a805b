"""Files of conversations: JSON lines, packed or not, and Parquet; rows that are skipped; files that are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from firstlight.data.chat.counts import ConversationCounts
from firstlight.data.chat.reading import check_file, read_conversations, suffix_of
from firstlight.errors import DataError

QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a 🐕"}]
LINE = json.dumps(QA).encode() + b"\n"


def read(path: Path, **arguments: str) -> tuple[list[tuple[str, list[tuple[str, str]]]], ConversationCounts]:
    counts = ConversationCounts()
    found = [
        (where, [(m.role, m.text) for m in messages])
        for where, messages in read_conversations(path, counts, **arguments)
    ]
    return found, counts


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    data = b"\xef\xbb\xbf" + LINE + b"\n" + LINE.rstrip(b"\n") + b"\r\n" + LINE.rstrip()
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"talks{suffix}"
    path.write_bytes(pack(data))
    found, counts = read(path)
    answer = [("user", "q"), ("assistant", "a 🐕")]
    assert found == [(f"talks{suffix}:{row}", answer) for row in (0, 2, 3)]
    assert (counts.conversations, counts.messages, counts.text_bytes) == (3, 6, 3 * (1 + 6))
    assert counts.forms == {f"talks{suffix}": {"list": 3}}
    assert counts.skipped == {}


@pytest.mark.parametrize(
    "rows",
    [
        {"messages": [QA, QA]},
        {"conversations": [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a 🐕"}]] * 2},
        {"instruction": ["q", "q"], "input": ["", None], "output": ["a 🐕"] * 2, "other": [1, 2]},
    ],
)
def test_parquet(tmp_path: Path, rows: dict) -> None:
    path = tmp_path / "talks.parquet"
    pq.write_table(pa.table({"id": [1, 2], **rows}), path)
    found, _ = read(path, name="train/talks.parquet")
    answer = [("user", "q"), ("assistant", "a 🐕")]
    assert found == [("train/talks.parquet:0", answer), ("train/talks.parquet:1", answer)]


def test_bad_rows_are_skipped_counted_and_named(write_rows) -> None:
    path = write_rows([
        QA, "{broken", "[1,", '"text"', "NaN", {"text": "no talk"}, [], [{"role": "wizard", "content": "x"}],
        [QA[1]], '[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]', "[" * 100_000, QA,
    ])  # fmt: skip
    with open(path, "ab") as file:
        file.write(b'[{"role": "user", "content": "\xff"}]\n')
    found, counts = read(path)
    assert [where for where, _ in found] == ["talks.jsonl:0", "talks.jsonl:11"]
    assert counts.skipped == {
        "invalid_json": 3, "no_conversation": 3, "no_message": 1, "wrong_role": 1, "no_answer": 1, "invalid_utf8": 2,
    }  # fmt: skip
    assert counts.examples["invalid_json"][0].startswith("talks.jsonl:1 (line 2) is not JSON")
    assert counts.examples["wrong_role"] == ["talks.jsonl:7 message 0 is of the role 'wizard'"]
    assert "byte 0xff" in counts.examples["invalid_utf8"][1]


def test_a_file_without_any_conversation_is_refused_at_once(write_rows) -> None:
    path = write_rows([{"text": "x"}] * 200)
    with pytest.raises(DataError, match=r"talks.jsonl: none of its first 100 rows gives a conversation \(100 no_conv"):
        check_file(path, "talks.jsonl")
    with pytest.raises(DataError, match=r"none of its 200 rows") as caught:
        read(path)
    assert "its fields are text" in caught.value.hint


def test_an_empty_file_holds_nothing_and_is_no_error(write_rows) -> None:
    path = write_rows([])
    check_file(path, path.name)
    assert read(path)[0] == []


def test_a_parquet_file_without_a_column_of_conversations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"a.parquet has no column of conversations; its columns are text, n"):
        check_file(path, path.name)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.parquet", b"PAR1 not whole", "a.parquet is damaged"),
        ("a.jsonl.gz", gzip.compress(LINE * 50)[:-12], "a.jsonl.gz is damaged"),
        ("a.jsonl.gz", LINE, "a.jsonl.gz is damaged"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(LINE * 50)[:-4], "a.jsonl.zst is damaged"),
        ("a.txt", b"hello", "a.txt is not a kind of file that can be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=words):
        read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl cannot be read: No such file"):
        read(tmp_path / "gone.jsonl")


def test_one_row_of_parquet_that_is_not_utf8_does_not_spoil_the_others(tmp_path: Path) -> None:
    good = pa.array(["q1", "q2", "q3"], pa.string())
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": good, "output": bad}), path)
    found, counts = read(path)
    assert [where for where, _ in found] == ["a.parquet:0", "a.parquet:2"]
    assert counts.skipped == {"invalid_utf8": 1}


def test_suffixes() -> None:
    assert [suffix_of(name) for name in ("a.JSONL", "b.jsonl.gz", "c.parquet", "d.json", "e.txt", "jsonl")] == [
        ".jsonl", ".jsonl.gz", ".parquet", None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "count"), [
        ("sft_chitchat", 1000), ("sft_dolly_hhrlhf", 1000), ("sft_medquad", 1500), ("sft_schema_guided_dialogue", 1500),
        ("sft_self_instruct_seed", 427),
    ],
)  # fmt: skip
def test_real_files(shared_data: Path, name: str, count: int) -> None:
    """Read beside the plain JSON: the same texts, whatever is between."""
    path = shared_data / "chat" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found, counts = read(path)
    assert counts.conversations == count == len(found)
    assert counts.forms == {path.name: {"list": count}}
    assert counts.skipped == {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not counts.changed:
        assert [talk for _, talk in found] == [[(m["role"], m["content"]) for m in line] for line in lines]
