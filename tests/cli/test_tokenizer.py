"""`firstlight tokenizer train|eval|show`: outputs, JSON, and each mistake's message and exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.cli.main import run
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.samples import SAMPLES


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in SAMPLES.values()]
    (folder / "a.jsonl").write_text("\n".join([*lines, '{"text": null}']) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text("The cat sat on the mat. " * 50, encoding="utf-8")
    return folder


@pytest.fixture
def trained(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "t.json"
    assert run(["tokenizer", "train", "--data", str(texts), "--vocab-size", "500", "--out", str(path)]) == 0
    capsys.readouterr()
    return path


def test_train_writes_a_tokenizer_and_says_what_it_did(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "t.json"
    assert run(["tokenizer", "train", "--data", str(texts), "--vocab-size", "500", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    tokenizer = Tokenizer.load(out)
    assert tokenizer.vocab_size == 500
    assert tokenizer.facts["data"] == str(texts)
    num_bytes = sum(len(text.encode()) for text in SAMPLES.values()) + len("The cat sat on the mat. " * 50)
    assert num_bytes - 2 <= tokenizer.facts["num_bytes"] <= num_bytes
    assert f"wrote {out}: 500 ids" in said
    assert f"{len(SAMPLES) + 1} texts" in said
    assert "skipped rows: 1 null" in said


def test_train_takes_underscores_and_prints_one_json_object(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--vocab_size", "300", "--max_bytes", "2_000", "--out", str(tmp_path / "t.json"), "--json"]
    assert run(["tokenizer", "train", "--data", str(texts), *arguments]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["vocab_size"] == 300
    assert made["training"]["num_bytes"] <= 2000
    assert made["training"]["stopped_at_max_bytes"] is True
    assert made["content_hash"] == Tokenizer.load(tmp_path / "t.json").content_hash


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--vocab-size", "100"], 2, "--vocab-size 100 is too small"),
        (["--vocab-size", "900000"], 3, "give at most"),
        (["--max-bytes", "0"], 2, "--max-bytes 0 is out of range"),
        (["--data", "no_such_thing_at_all"], 2, "--data no_such_thing_at_all"),
    ],
)
def test_train_names_the_mistake(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    defaults = {"--data": str(texts), "--out": str(tmp_path / "t.json"), "--vocab-size": "300"}
    defaults.update(zip(arguments[::2], arguments[1::2], strict=True))
    flags = [word for pair in defaults.items() for word in pair]
    assert run(["tokenizer", "train", *flags]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_train_refuses_bad_sizes_before_any_text_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstlight.data.sources import resolve

    def fetch(*args: object, **kwargs: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(resolve, "open_source", fetch)
    assert run(["tokenizer", "train", "--vocab-size", "100", "--out", str(tmp_path / "t.json")]) == 2
    assert "the smallest is 266" in capsys.readouterr().err


def test_train_refuses_to_replace_a_file_unless_forced(
    texts: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained.read_bytes()
    command = ["tokenizer", "train", "--data", str(texts), "--vocab-size", "400", "--out", str(trained)]
    assert run(command) == 2
    assert "exists" in capsys.readouterr().err
    assert trained.read_bytes() == before
    assert run([*command, "--force"]) == 0
    assert Tokenizer.load(trained).vocab_size == 400


def test_train_refuses_a_directory_as_the_file(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "train", "--data", str(texts), "--out", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


def test_train_does_not_read_the_pinned_validation_shard(tmp_path: Path) -> None:
    from firstlight.cli.tokenizer import read_training_texts
    from firstlight.data.sources.base import ReadCounts, Source, SourceShard

    shards = []
    for name in ("a.txt", "val.txt", "z.txt"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
        shards.append(SourceShard(name=name, path=tmp_path / name))
    source = Source(name="x", shards=tuple(shards), val_shard="val.txt")
    assert list(read_training_texts(source, ReadCounts())) == ["text of a.txt", "text of z.txt"]


def test_eval_prints_a_row_for_each_sample(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "eval", "--tokenizer", str(trained)]) == 0
    said = capsys.readouterr().out
    for kind in [*SAMPLES, "all"]:
        assert any(line.startswith(kind) for line in said.splitlines()), kind
    assert "500 ids" in said


def test_eval_json_counts_given_files(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("naïve", encoding="utf-8")
    second.write_bytes(b"a\r\nb")
    files = ["--file", str(first), "--file", str(second)]
    assert run(["tokenizer", "eval", "--tokenizer", str(trained), *files, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["num_bytes"]) for row in made["texts"]] == [(str(first), 6), (str(second), 4)]
    assert made["all"]["num_bytes"] == 10
    assert made["vocab_size"] == 500
    assert made["not_available"] == {}


def test_eval_compare_says_where_a_reference_is_not_available(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstlight.tokens import report

    monkeypatch.setattr(report, "reference_token_counts", lambda *args, **kwargs: "not available offline: no network")
    assert run(["tokenizer", "eval", "--tokenizer", str(trained), "--compare"]) == 0
    said = capsys.readouterr().out
    assert "GPT-2: not available offline: no network" in said
    assert "GPT-4: not available offline: no network" in said


def test_show_cuts_a_text_into_visible_tokens(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "show", "The cat\n\t🙂 12345", "--tokenizer", str(trained)]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = "\n".join(lines[:-2]).replace("│", "")
    assert shown.startswith("The·cat↵\n→")
    assert shown.endswith("·12345")
    ids = [int(word) for word in lines[-2].split()]
    assert Tokenizer.load(trained).decode(ids) == "The cat\n\t🙂 12345"
    assert lines[-1].startswith(f"19 bytes, {len(ids)} tokens")


def test_show_json_holds_text_ids_and_tokens(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "show", "é\ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16"),
                "--tokenizer", str(trained), "--json"]) == 0  # fmt: skip
    made = json.loads(capsys.readouterr().out)
    assert made["text"] == "é🙂"
    assert made["num_bytes"] == 6
    assert made["num_tokens"] == len(made["ids"]) == len(made["tokens"])
    assert Tokenizer.load(trained).decode(made["ids"]) == "é🙂"


def test_show_of_special_looking_text_is_text(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "show", "<|bos|>", "--tokenizer", str(trained), "--json"]) == 0
    assert max(json.loads(capsys.readouterr().out)["ids"]) < Tokenizer.load(trained).bos_id


def test_show_of_a_file_and_of_nothing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    assert run(["tokenizer", "show", "--file", str(tmp_path / "empty.txt"), "--tokenizer", str(trained)]) == 0
    assert "0 bytes, 0 tokens, 0.00 bytes per token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show"], 2, "no text to show"),
        (["show", "x", "--file", "y.txt"], 2, "not both"),
        (["show", "x", "--tokenizer", "nowhere.json"], 3, "no tokenizer at nowhere.json"),
        (["eval", "--file", "nowhere.txt"], 3, "--file nowhere.txt cannot be read"),
        (["eval", "--file", "latin.txt"], 3, "--file latin.txt is not UTF-8: byte 3 is 0xe9"),
        (["eval", "--tokenizer", "latin.txt"], 3, "latin.txt is not JSON text"),
    ],
)
def test_mistakes_have_one_message_and_the_right_exit_code(
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(trained.parent)
    (trained.parent / "tokenizer.json").write_bytes(trained.read_bytes())
    (trained.parent / "latin.txt").write_bytes("café".encode("latin-1"))
    assert run(["tokenizer", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
