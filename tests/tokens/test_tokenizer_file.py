"""tokenizer.json: what is written is read back, and everything else is refused in words."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.tokenizer_file import escape, unescape


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode()))
def test_escape_round_trips_any_bytes_and_is_visible_text(token: bytes) -> None:
    escaped = escape(token)
    assert unescape(escaped) == token
    assert escaped.isprintable()


@pytest.mark.parametrize(
    ("token", "escaped"),
    [
        (b" the", " the"),
        ("é".encode(), "é"),
        ("中文".encode(), "中文"),
        (b"\xe4\xb8", r"\xe4\xb8"),
        (b"a\n", r"a\x0a"),
        (b"\\x41", r"\\x41"),
        (b"\\", r"\\"),
        ("\u200b".encode(), r"\xe2\x80\x8b"),
    ],
)
def test_escape_gives_readable_text(token: bytes, escaped: str) -> None:
    assert escape(token) == escaped


@pytest.mark.parametrize("text", ["\\", "\\n", "a\\x4", "\\xZZ"])
def test_unescape_refuses_a_backslash_that_begins_no_escape(text: str) -> None:
    with pytest.raises(ValueError, match="begins no escape"):
        unescape(text)


def test_saved_tokenizer_loads_as_the_same_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "sub" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "sub" / "tokenizer.json")
    text = "def naïve(x): return 12345  # 🙂 <|bos|>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.content_hash, loaded.facts, loaded.special_ids, loaded.pattern, loaded.vocab_size) == (
        tokenizer.content_hash,
        tokenizer.facts,
        tokenizer.special_ids,
        tokenizer.pattern,
        tokenizer.vocab_size,
    )
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "sub" / "tokenizer.json").read_bytes()


def test_a_directory_stands_for_the_file_in_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).content_hash == tokenizer.content_hash


def test_file_is_json_with_one_readable_id_per_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t.json")
    content = (tmp_path / "t.json").read_text(encoding="utf-8")
    fields = json.loads(content)
    assert fields["format"] == "firstlight-bpe"
    assert fields["content_hash"] == tokenizer.content_hash
    assert len(fields["ranks"]) == tokenizer.vocab_size - 9
    assert '    " the",\n' in content
    assert sum(line.startswith("    ") for line in content.splitlines()) == len(fields["ranks"])


def test_save_leaves_nothing_but_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t.json")
    tokenizer.save(tmp_path / "t.json")
    assert os.listdir(tmp_path) == ["t.json"]


def test_failed_save_keeps_the_old_file(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.save(tmp_path / "t.json")
    before = (tmp_path / "t.json").read_bytes()

    def disk_full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(DataError, match="No space left on device"):
        tokenizer.save(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["t.json"]


def _saved_fields(tokenizer: Tokenizer, path: Path) -> dict:
    tokenizer.save(path)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["pattern", "special_tokens", "training", "ranks", "content_hash"])
def test_missing_field_is_named(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.json"
    fields = _saved_fields(tokenizer, path)
    del fields[name]
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DataError, match=f'"{name}" is missing'):
        Tokenizer.load(path)


@pytest.mark.parametrize("name", ["pattern", "special_tokens", "training", "ranks", "content_hash"])
def test_field_of_the_wrong_type_is_named(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.json"
    fields = _saved_fields(tokenizer, path)
    fields[name] = 7
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DataError, match=f'"{name}" is a int'):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ranks", lambda ranks: [*ranks[:-1], "zzqx"]),
        ("ranks", lambda ranks: [*ranks[:300], ranks[301], ranks[300], *ranks[302:]]),
        ("pattern", lambda pattern: pattern.replace("{1,2}", "{1,3}")),
        ("special_tokens", lambda names: [*names[:-1], "<|other|>"]),
        ("content_hash", lambda digest: digest[::-1]),
    ],
)
def test_changed_content_does_not_match_the_hash(tokenizer: Tokenizer, tmp_path: Path, name: str, change) -> None:
    path = tmp_path / "t.json"
    fields = _saved_fields(tokenizer, path)
    fields[name] = change(fields[name])
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DataError, match=r"t\.json is damaged: its content hash"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ranks", lambda ranks: ranks[1:], "256 single bytes"),
        ("ranks", lambda ranks: [*ranks, ranks[-1]], "two ranks have the same bytes"),
        ("ranks", lambda ranks: [*ranks, ""], "or one has none"),
        ("ranks", lambda ranks: [*ranks, "\\q"], 'of "ranks" is not readable'),
        ("ranks", lambda ranks: [*ranks, 3], 'of "ranks" is 3, not a string'),
        ("special_tokens", lambda names: names[1:], "include <|bos|>"),
        ("pattern", lambda pattern: "(", "not a valid regular expression"),
        ("format", lambda name: "other", "not a firstlight tokenizer"),
        ("version", lambda version: 99, '"version" is 99; this firstlight reads 1'),
    ],
)
def test_senseless_content_is_refused_with_the_files_name(
    tokenizer: Tokenizer, tmp_path: Path, name: str, change, message: str
) -> None:
    path = tmp_path / "t.json"
    fields = _saved_fields(tokenizer, path)
    fields[name] = change(fields[name])
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DataError, match=message.replace("|", r"\|")) as caught:
        Tokenizer.load(path)
    assert "t.json" in caught.value.what


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"format": "x"}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.json is not (JSON text|a firstlight tokenizer)"):
        Tokenizer.load(tmp_path / "t.json")


def test_truncated_file_is_refused_at_any_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t.json")
    whole = (tmp_path / "t.json").read_bytes()
    for length in (10, 200, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.json").write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not JSON text"):
            Tokenizer.load(tmp_path / "cut.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer at .*nowhere\.json"):
        Tokenizer.load(tmp_path / "nowhere.json")


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_file_is_refused_and_its_code_does_not_run(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(pickle.dumps(_Payload(tmp_path / "was_run"), protocol=protocol))
    with pytest.raises(DataError, match=r"pickle and is refused|is not JSON text"):
        Tokenizer.load(path)
    assert not (tmp_path / "was_run").exists()
