"""Names to conversations: files, folders, the hub (against a stub on this machine), builtin-chat."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstlight.data.chat import sources
from firstlight.data.chat.counts import ConversationCounts
from firstlight.data.chat.sources import BuiltinConversations, open_conversations
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.conversation import Message

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def talk(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question}!"}]


def questions(source: sources.ConversationSource, split: str | None = None) -> list[tuple[str, str]]:
    return [(where, messages[0].text) for where, messages in source.read(ConversationCounts(), split)]


def test_a_file_and_a_folder(write_rows, tmp_path: Path) -> None:
    one = write_rows([talk("a")], "talks/part_10.jsonl")
    write_rows([talk("b"), talk("c")], "talks/part_9.jsonl")
    write_rows([talk("d")], "talks/more/part_1.jsonl")
    write_rows(["not read"], "talks/.hidden.jsonl")
    write_rows(["a text"], "talks/notes.txt")
    write_rows(["about"], "talks/README.md")
    single = open_conversations(str(one), cache_dir=tmp_path)
    assert questions(single) == [("part_10.jsonl:0", "a")]
    assert (single.name, single.names, single.splits) == (str(one), ("part_10.jsonl",), ())
    folder = open_conversations(str(tmp_path / "talks"), cache_dir=tmp_path)
    assert isinstance(folder, sources.FileConversations)
    assert questions(folder) == [
        ("more/part_1.jsonl:0", "d"), ("part_9.jsonl:0", "b"), ("part_9.jsonl:1", "c"), ("part_10.jsonl:0", "a"),
    ]  # fmt: skip
    assert folder.source.ignored == ("README.md", "notes.txt")


def test_the_content_hash_is_of_the_bytes_and_not_of_names(write_rows, tmp_path: Path) -> None:
    path = write_rows([talk("a")])
    first = open_conversations(str(path), cache_dir=tmp_path).content_hash
    copy = tmp_path / "other.jsonl"
    shutil.copy(path, copy)
    assert open_conversations(str(copy), cache_dir=tmp_path).content_hash == first
    write_rows([talk("b")])
    assert open_conversations(str(path), cache_dir=tmp_path).content_hash != first


@pytest.mark.parametrize(
    ("make", "name", "kind", "words", "hint"),
    [
        ([], "", ConfigError, "no conversations of that name are known", "builtin-chat"),
        ([], "builtin_chat", ConfigError, "builtin_chat: no conversations", "did you mean builtin-chat"),
        ([], "smoltlak", ConfigError, "no conversations", "did you mean smoltalk"),
        (["talks.jsonl"], "talk.jsonl", ConfigError, "no conversations", r"did you mean \S*talks.jsonl"),
        ([], "smoltalk:0", ConfigError, "'0' is no number of shards", "from 1 up"),
        ([], "smoltalk:x", ConfigError, "'x' is no number of shards", "from 1 up"),
        ([], "hf:nonsense", ConfigError, "is not of the form", "hf:"),
        (["a.txt"], "a.txt", DataError, "not a kind of file", ".jsonl"),
        (["a.json"], "a.json", DataError, "not a kind of file", r"jq -c '.\[\]' a.json > a.jsonl"),
        (["d/a.txt"], "d", DataError, "d has no conversations to read; it holds a.txt", ".jsonl"),
        (["d/.x"], "d", DataError, "has no conversations to read, and it is empty", ".jsonl"),
    ],
)
def test_names_that_are_wrong(make, name, kind, words, hint, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for each in make:
        Path(each).parent.mkdir(exist_ok=True)
        Path(each).write_text("{}\n")
    with pytest.raises(kind, match=words) as caught:
        open_conversations(name, cache_dir=tmp_path / "cache")
    assert re.search(hint, caught.value.hint)


def test_a_folder_with_one_useless_file_is_refused_when_it_is_opened(write_rows, tmp_path: Path) -> None:
    write_rows([talk("a")], "d/a.jsonl")
    write_rows([{"text": "x"}], "d/b.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl: none of its first 1 rows gives a conversation"):
        open_conversations(str(tmp_path / "d"), cache_dir=tmp_path)


# A hub


def parquet_bytes(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"messages": [talk(name) for name in names]}), buffer)
    return buffer.getvalue()


def serve(server, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
    tree = [
        {
            "type": "file", "path": path, "size": len(data), "oid": "0" * 40,
            "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130},
        }
        for path, data in files.items()
    ]  # fmt: skip
    for path, data in files.items():
        server.expect_request(f"/datasets/{repo}/resolve/{COMMIT}/{path}").respond_with_data(data)
    info = {"id": repo, "sha": COMMIT, "siblings": [], "private": False, "disabled": False, "tags": []}
    server.expect_request(f"/api/datasets/{repo}/revision/{revision}").respond_with_json(info)
    server.expect_request(f"/api/datasets/{repo}/tree/{COMMIT}").respond_with_json(tree)
    return server.url_for("").rstrip("/")


def test_a_hub_data_set_with_its_own_validation(httpserver, tmp_path: Path) -> None:
    files = {
        "data/train-00000.parquet": parquet_bytes(["a", "b"]),
        "data/train-00001.parquet": parquet_bytes(["c"]),
        "data/validation-00000.parquet": parquet_bytes(["v"]),
        "data/test-00000.parquet": parquet_bytes(["t"]),
        "README.md": b"about",
    }
    endpoint = serve(httpserver, "owner/talks", files)
    source = open_conversations("hf:owner/talks:data:1", cache_dir=tmp_path, endpoint=endpoint)
    assert source.splits == ("train", "val")
    assert [text for _, text in questions(source, "train")] == ["a", "b"]
    assert questions(source, "val") == [("data/validation-00000.parquet:0", "v")]
    assert [text for _, text in questions(source)] == ["a", "b", "v"]
    served = len(httpserver.log)
    again = open_conversations("hf:owner/talks:data:1", cache_dir=tmp_path, endpoint=endpoint)
    assert questions(again) == questions(source)
    assert again.content_hash == source.content_hash
    assert len(httpserver.log) == served  # nothing is asked for twice


@pytest.mark.parametrize(("name", "repo", "folder"), [
    ("smoltalk:1", "HuggingFaceTB/smoltalk", "data/all"), ("smol-smoltalk", "HuggingFaceTB/smol-smoltalk", "data"),
])  # fmt: skip
def test_presets(httpserver, tmp_path: Path, name: str, repo: str, folder: str) -> None:
    files = {
        f"{folder}/train-00000-of-00002.parquet": parquet_bytes(["a"]),
        f"{folder}/test-00000-of-00001.parquet": parquet_bytes(["t"]),
        "other/train-00000-of-00001.parquet": parquet_bytes(["x"]),
        f"{folder}/words.txt": b"words",
    }
    source = open_conversations(name, cache_dir=tmp_path, endpoint=serve(httpserver, repo, files))
    assert (source.name, source.splits) == (name, ())
    assert [text for _, text in questions(source)] == ["a"]


def test_a_hub_data_set_without_conversations(httpserver, tmp_path: Path) -> None:
    endpoint = serve(httpserver, "owner/words", {"a.txt": b"words"})
    with pytest.raises(DataError, match=r"hf:owner/words has no conversations to read; it holds a.txt"):
        open_conversations("hf:owner/words", cache_dir=tmp_path, endpoint=endpoint)


def test_builtin_chat_gives_its_train_and_val_and_never_its_test() -> None:
    def conversations(split: str) -> list[tuple[str, tuple[Message, ...]]]:
        return [(f"{split}:0", (Message.of("user", split), Message.of("assistant", "ü")))]

    source = BuiltinConversations(SimpleNamespace(conversations=conversations, content_hash="h"))  # type: ignore[arg-type]
    counts = ConversationCounts()
    assert [where for where, _ in source.read(counts)] == ["train:0", "val:0"]
    assert (counts.conversations, counts.messages, counts.text_bytes) == (2, 4, 5 + 2 + 3 + 2)
    assert questions(source, "val") == [("val:0", "val")]
    assert (source.name, source.splits, source.content_hash) == ("builtin-chat", ("train", "val"), "h")
