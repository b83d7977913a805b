"""Claims of recipes/chat_bundle.py: files in a folder, the hub's files without one, and plain words for what is missing."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstlight.data.chat import builtin
from firstlight.data.download import RemoteFile
from firstlight.errors import ConfigError, DataError
from firstlight.eval.chat.task import ChatTask
from firstlight.recipes import chat_bundle
from firstlight.recipes.chat_bundle import available, open_tasks, read_rows
from firstlight.runtime.channel import Channel

GSM8K = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(5)]
ARC = [{"query": "Question: Hot?", "choices": ["ice", "fire"], "gold": 1}]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def opened(names: list[str], data: Path | None, tmp_path: Path, **more) -> list[ChatTask]:
    return open_tasks(names, data=data, control=Channel(), cache_dir=tmp_path / "cache", **more)


def test_files_are_found_in_a_folder_and_in_a_bundle_of_core(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "chat/gsm8k_test.jsonl", GSM8K)
    write(data / "core/eval_data/world_knowledge/arc_easy.jsonl", ARC)
    write(data / "mmlu_test.jsonl.gz", [{"question": "a\u2028b?", "choices": ["x", "y"], "answer": 0, "subject": "s"}])
    (data / "words_alpha.txt.gz").write_bytes(
        gzip.compress("\n".join(f"word{chr(97 + i)}" for i in range(26)).encode())
    )
    tasks = opened(["gsm8k", "arc_easy", "mmlu", "spelling"], data, tmp_path)
    assert [(task.name, len(task.items)) for task in tasks] == [
        ("gsm8k", 5),
        ("arc_easy", 1),
        ("mmlu", 1),
        ("spelling", 26),
    ]
    # A line separator inside a text ends no row.
    assert "a\u2028b?" in tasks[2].items[0].messages[0].text
    assert tasks[0].items[3].where == "gsm8k_test.jsonl:3"
    names, lacking = available(data)
    assert names == ["builtin-chat", "arc_easy", "mmlu", "gsm8k", "spelling"]
    assert lacking == ["arc_challenge", "humaneval", "svamp"]
    assert available(None) == (["builtin-chat", "spelling"], [])


def test_what_is_missing_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gsm8k has no file in --chat-data") as error:
        opened(["gsm8k"], tmp_path, tmp_path, flags=("--chat-tasks", "--chat-data"))
    assert "chat/gsm8k_test.jsonl" in str(error.value)
    assert "--chat-tasks" in str(error.value)
    with pytest.raises(ConfigError, match=r"--data .*nowhere is not a folder"):
        opened(["gsm8k"], tmp_path / "nowhere", tmp_path)
    with pytest.raises(ConfigError, match="gsm9k"):
        opened(["gsm9k"], tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "line 2 is not JSON"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:20], "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
    ids=["not JSON", "not UTF-8", "not gzip", "cut gzip", "not Parquet"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(tmp_path / name, name)
    assert name in str(error.value)


def test_an_empty_file_is_no_task(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        opened(["gsm8k"], tmp_path, tmp_path)


def test_without_a_folder_it_is_the_hubs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made.parquet"
    pq.write_table(pa.Table.from_pylist(GSM8K), made)
    facts = {
        "num_bytes": made.stat().st_size,
        "sha256": hashlib.sha256(made.read_bytes()).hexdigest(),
        "git_sha1": None,
    }
    files = dict.fromkeys(
        ("main/train-00000.parquet", "main/test-00000-of-00001.parquet", "socratic/test-0.parquet"), facts
    )
    asked: list[tuple[RemoteFile, Path]] = []

    def listing(hub, path: Path, endpoint: str | None) -> dict:
        return {"repo": hub.repo, "commit": "c0ffee", "files": files}

    def fetch(remote: RemoteFile, path: Path) -> Path:
        asked.append((remote, path))
        path.parent.mkdir(parents=True)
        path.write_bytes(made.read_bytes())
        return path

    monkeypatch.setattr(chat_bundle, "_fetch_listing", listing)
    [task] = opened(["gsm8k"], None, tmp_path, fetch=fetch, endpoint="http://hub.test")
    [(remote, path)] = asked
    assert remote.url == "http://hub.test/datasets/openai/gsm8k/resolve/c0ffee/main/test-00000-of-00001.parquet"
    assert (remote.num_bytes, remote.sha256) == (facts["num_bytes"], facts["sha256"])
    assert path == tmp_path / "cache/hub/openai--gsm8k@main/main/test-00000-of-00001.parquet"
    write(tmp_path / "data/gsm8k_test.jsonl", GSM8K)
    assert task.content_hash == opened(["gsm8k"], tmp_path / "data", tmp_path)[0].content_hash

    def refuse(remote: RemoteFile, path: Path) -> Path:
        raise DataError("the hub cannot be reached", hint="check the connection")

    with pytest.raises(DataError, match="cannot be reached") as error:
        opened(["gsm8k"], None, tmp_path, fetch=refuse)
    assert "--data DIR" in str(error.value)


class FakeBuiltin:
    """Held-out questions in the place of those that take 15 s to make."""

    def examples(self, split: str) -> list:
        assert split == "test"
        from firstlight.data.chat.builtin_example import Example, ask

        words = [Example("spelling", "spell", ask("q", "a"), "a", (f"word abc{chr(97 + i)}",)) for i in range(26)]
        return [*words, Example("docs", "does", ask("q", "a"), "a", ("entry x.y",))]

    def questions(self, split: str) -> list[builtin.Question]:
        assert split == "test"
        from firstlight.tokens.conversation import Message

        messages = (Message.of("user", "q"),)
        return [builtin.Question("docs", messages, "A.", lambda reply: reply == "A.", lambda reply: True)]


def test_builtin_chat_and_spelling_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_bundle, "open_builtin_chat", lambda cache_dir: FakeBuiltin())
    said: list[str] = []
    chat, spelling = opened(["offline"], None, tmp_path, report=said.append)
    assert (chat.name, len(chat.items), chat.is_mixed) == ("builtin-chat", 1, True)
    assert (spelling.name, len(spelling.items)) == ("spelling", 26)
    assert spelling.items[0].where.startswith("builtin-chat: abc")
