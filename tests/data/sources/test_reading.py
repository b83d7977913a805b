"""Files of documents: every kind gives the texts that were written, and nothing is dropped without a count."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from firstlight.data.sources.base import ReadCounts, natural_key
from firstlight.data.sources.reading import check_file, read_documents, suffix_of
from firstlight.errors import DataError

TEXTS = ["A first text.", "Zwei Zeilen:\nä ö ü €", "three \U0001f415 dogs\r\nwith a Windows line end"]


def read(path, **keywords):
    counts = ReadCounts()
    return list(read_documents(path, counts, **keywords)), counts


def write_parquet(path, values, kind=None, **keywords):
    pq.write_table(pa.table({"text": pa.array(values, kind or pa.string())}), path, **keywords)
    return path


def write_jsonl(path, lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_gives_each_row_of_every_text_type(tmp_path, kind):
    values = [text.encode() for text in TEXTS] if pa.types.is_binary(kind) else TEXTS
    rows, counts = read(write_parquet(tmp_path / "a.parquet", values, kind, row_group_size=2))
    assert rows == list(enumerate(TEXTS))
    assert counts.documents == 3
    assert counts.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert counts.skipped == 0


def pack(suffix, data):
    return {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](data)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_give_the_same_texts_packed_and_not(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(suffix, "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS).encode()))
    rows, counts = read(path)
    assert rows == list(enumerate(TEXTS))
    assert counts.documents == 3


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_txt_file_is_one_document_with_its_line_ends(tmp_path, suffix):
    path = tmp_path / f"book.txt{suffix}"
    path.write_bytes(pack(suffix, b"one\r\n\r\n\r\ntwo\n"))
    assert read(path)[0] == [(0, "one\r\n\r\n\r\ntwo\n")]


def test_separator_lines_cut_a_txt_file_and_a_mention_of_them_does_not(tmp_path):
    path = tmp_path / "many.txt"
    path.write_bytes(b"one\n<|endoftext|>\nsays <|endoftext|> inside\r\n<|endoftext|>\r\nthree\n<|endoftext|>\n")
    assert read(path)[0] == [(0, "one\n"), (1, "says <|endoftext|> inside\r\n"), (2, "three\n")]


def test_several_zstd_frames_are_one_text(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"first ") + zstandard.compress(b"second"))
    assert read(path)[0] == [(0, "first second")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + (b'{"text": "x"}\n' if name.endswith("jsonl") else b"x"))
    assert read(path)[0] == [(0, "x")]


def test_a_line_of_10_mb_is_read_whole(tmp_path):
    text = "0123456789" * 1_000_000
    rows, counts = read(write_jsonl(tmp_path / "long.jsonl", [{"text": "short"}, {"text": text}]))
    assert rows[1] == (1, text)
    assert counts.text_bytes == 10_000_005


def test_nulls_and_empty_texts_in_parquet_are_counted_and_keep_their_row_numbers(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["a", None, "", " \n\t", "b"])
    rows, counts = read(path, name="folder/a.parquet")
    assert rows == [(0, "a"), (4, "b")]
    assert (counts.skipped_null, counts.skipped_empty) == (1, 2)
    assert counts.examples[:2] == ["folder/a.parquet:1 has no text", "folder/a.parquet:2 is empty"]


def test_rows_of_invalid_utf8_in_a_string_column_are_counted_and_the_rest_is_read(tmp_path):
    # Arrow does not look inside strings: bytes go unseen through a cast that does not check.
    column = pa.array([b"good", b"bad \xff\xfe", b"fine"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    rows, counts = read(tmp_path / "a.parquet")
    assert rows == [(0, "good"), (2, "fine")]
    assert counts.skipped_invalid_utf8 == 1
    assert counts.examples == ["a.parquet:1 is not UTF-8: byte 0xff at offset 4"]


def test_bad_json_lines_are_counted_by_reason_and_named(tmp_path):
    lines = [
        {"text": "good"}, b"{not json\n", {"text": None}, {"text": 7}, {"body": "x"}, [1], b'{"text": "\xff"}\n',
        b'{"text": "half \\ud800"}\n', b"\n", {"text": "last"},
    ]  # fmt: skip
    rows, counts = read(write_jsonl(tmp_path / "a.jsonl", lines))
    assert rows == [(0, "good"), (9, "last")]
    assert counts.skipped_by_reason() == {"null": 1, "invalid_utf8": 2, "not_text": 3, "invalid_json": 1}
    assert counts.examples[0].startswith("a.jsonl:1 (line 2) is not JSON")
    assert counts.examples[2] == "a.jsonl:3 (line 4) has a number in `text`"
    assert counts.examples[3] == "a.jsonl:4 (line 5) has no field `text`; its fields are body"
    assert len(counts.examples) == 5


@pytest.mark.parametrize("line", [b"no json\n", b'{"content": "x"}\n', b'"x"\n', b"\xff\n"])
def test_a_file_with_no_usable_line_at_all_is_an_error_that_says_why(tmp_path, line):
    path = write_jsonl(tmp_path / "a.jsonl", [line] * 3)
    counts = ReadCounts(examples=["other.jsonl:0 is empty"])
    with pytest.raises(DataError, match="none of its first 3 rows can be used") as caught:
        list(read_documents(path, counts))
    assert "a.jsonl:0" in caught.value.hint
    assert "other.jsonl" not in caught.value.hint


def test_a_wrong_field_name_comes_out_before_the_file_is_read_through(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "x"}] * 300)
    with pytest.raises(DataError, match=r"none of its first 100 rows can be used .100 not text") as caught:
        check_file(path)
    assert caught.value.hint == "a.jsonl:0 (line 1) has no field `text`; its fields are content"


def test_a_txt_file_that_is_not_utf8_is_an_error_that_says_where(tmp_path):
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"none of its 1 rows can be used .1 invalid utf8") as caught:
        read(tmp_path / "a.txt")
    assert caught.value.hint == "a.txt:0 is not UTF-8: byte 0xe9 at offset 3"


def test_a_file_of_nulls_only_gives_no_document_and_no_error(tmp_path):
    rows, counts = read(write_parquet(tmp_path / "a.parquet", [None, None], pa.null()))
    assert rows == []
    assert counts.skipped_null == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_has_no_documents(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    rows, counts = read(tmp_path / name)
    assert rows == []
    assert counts.skipped == 0


def test_a_parquet_file_cut_to_half_is_named_by_the_check_that_runs_before_training(tmp_path):
    path = write_parquet(tmp_path / "shard_00007.parquet", ["text " * 50] * 1000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"shard_00007\.parquet is not a whole Parquet file"):
        check_file(path)


def test_a_parquet_file_damaged_in_its_middle_is_named_with_the_last_row_that_was_read(tmp_path):
    texts = [f"{i} {'text ' * (i % 7)}" for i in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", texts, row_group_size=1000, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    data[start + 200 : start + 240] = b"\x55" * 40
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet is damaged near row (1024|2000)"):
        read(path)


def test_a_missing_text_column_is_an_error_with_the_columns_there_are(tmp_path):
    pq.write_table(pa.table({"content": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no column `text`; its columns are content, url") as caught:
        check_file(tmp_path / "a.parquet")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string())])
def test_a_text_column_of_another_type_is_an_error_with_the_type(tmp_path, kind):
    write_parquet(tmp_path / "a.parquet", [[], []] if kind != pa.int64() else [1, 2], kind)
    with pytest.raises(DataError, match=r"a\.parquet: column `text` holds (int64|list)"):
        check_file(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_cut_short_is_an_error_and_not_a_shorter_text(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = "".join(json.dumps({"text": f"{i * 7919 % 10007} words"}) + "\n" for i in range(20_000)).encode()
    path.write_bytes(pack(suffix, lines)[:-5000])
    with pytest.raises(DataError, match=r"a\.jsonl.* is damaged"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_only_claims_to_be_packed_is_named(tmp_path, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"a\.txt.* is not a (gzip|Zstandard) file"):
        check_file(tmp_path / f"a.txt{suffix}")


def test_utf16_is_refused_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.txt is UTF-16") as caught:
        read(tmp_path / "a.txt")
    assert "iconv" in caught.value.hint


def test_counts_add_up_over_files(tmp_path):
    total = ReadCounts()
    list(read_documents(write_parquet(tmp_path / "a.parquet", ["x", None]), total))
    other = ReadCounts()
    list(read_documents(write_parquet(tmp_path / "b.parquet", ["yz", ""]), other))
    total.add(other)
    assert (total.documents, total.text_bytes, total.skipped_by_reason()) == (2, 3, {"null": 1, "empty": 1})
    assert total.to_dict()["examples"] == ["a.parquet:1 has no text", "b.parquet:1 is empty"]


def test_names_sort_by_number_and_not_by_digits():
    names = ["s_10.txt", "s_9.txt", "s_009.txt", "a/s_1.txt"]
    assert sorted(names, key=natural_key) == ["a/s_1.txt", "s_009.txt", "s_9.txt", "s_10.txt"]


def test_kinds_are_known_by_the_whole_suffix():
    assert suffix_of("A.JSONL.GZ") == ".jsonl.gz"
    assert suffix_of("x.txt.zst") == ".txt.zst"
    assert suffix_of("README.md") is None
    assert suffix_of("data.json") is None


def test_reading_text_does_not_import_torch():
    code = "import firstlight.data.sources.resolve, firstlight.data.sources.builtin, firstlight.data.download, sys; "
    run = subprocess.run([sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
