"""`firstlight data fetch|import|info` as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from firstlight.cli.main import run
from firstlight.tokens.bpe import train_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [json.dumps({"text": f"{TEXT} {i}"}) for i in range(300)]
    (folder / "part_0.jsonl").write_text("\n".join([*lines, "{broken", '{"text": null}']))
    (folder / "part_1.txt").write_text(TEXT * 100)
    (folder / "README.md").write_text("about")
    return folder


@pytest.fixture
def tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer([TEXT] * 10, vocab_size=280, max_bytes=None).save(path)
    return path


def run_json(capsys, *arguments):
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_import_writes_shards_and_says_what_was_skipped(texts, tmp_path, capsys):
    assert run(["data", "import", str(texts), "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "301 documents" in said
    assert "skipped 2 rows: 1 null, 1 invalid json" in said
    assert "part_0.jsonl:300 (line 301) is not JSON" in said
    assert "README.md" in said
    assert pq.read_table(tmp_path / "out" / "shard_00000.parquet").num_rows == 301


def test_import_in_json_prints_the_record_and_nothing_else(texts, tmp_path, capsys):
    record = run_json(capsys, "data", "import", str(texts), "--out", "out", "--shard-mb", "0.01")
    assert record == json.loads((tmp_path / "out" / "import.json").read_text())
    assert len(record["shards"]) == 3


def test_info_counts_documents_bytes_skips_and_hashes(texts, capsys):
    found = run_json(capsys, "data", "info", str(texts))
    assert found["documents"] == 301
    assert found["text_bytes"] == sum(len(f"{TEXT} {i}") for i in range(300)) + 100 * len(TEXT)
    assert found["skipped"] == {"null": 1, "invalid_json": 1}
    assert found["shards"][1]["sha256"] == hashlib.sha256((texts / "part_1.txt").read_bytes()).hexdigest()
    assert "tokens" not in found


def test_info_with_a_tokenizer_adds_tokens_and_what_packing_uses(texts, tokenizer_file, capsys):
    found = run_json(
        capsys, "data", "info", str(texts), "--tokenizer", str(tokenizer_file), "--max-seq-len", "32", "--val", "last"
    )
    tokens = found["tokens"]
    assert tokens["documents"] == 301
    assert tokens["text_bytes"] == found["text_bytes"]
    assert tokens["data_hash"] == found["data_hash"]
    assert tokens["bytes_per_token"] == pytest.approx(found["text_bytes"] / tokens["tokens"])
    assert tokens["train"]["documents"] == 300
    assert tokens["val"]["documents"] == 1
    assert tokens["packing"]["bestfit"]["tokens_dropped"] == 0


def test_info_reads_well(texts, tokenizer_file, capsys):
    assert run(["data", "info", str(texts), "--tokenizer", str(tokenizer_file), "--max-seq-len", "32"]) == 0
    said = capsys.readouterr().out
    for part in ("documents", "bytes per token", "p50", "bestfit", "100.000 %", "data hash", "README.md", "skipped 2"):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["info", "tinystorys"], 2, "did you mean tinystories?"),
        (["info", "empty"], 3, "empty has no text to read"),
        (["info", "texts", "--max-seq-len", "0"], 2, "--max-seq-len 0"),
        (["info", "texts", "--val", "last"], 2, "--val last needs --tokenizer"),
        (["info", "texts", "--tokenizer", "none.json"], 3, "none.json"),
        (["import", "texts", "--out", "texts"], 2, "--out texts exists already"),
        (["import", "texts", "--out", "o", "--shard-mb", "0"], 2, "--shard-mb 0"),
        (["fetch", "climbmix:none"], 2, "'none' is no number of shards"),
        (["fetch", "builtin", "--num-parallel", "0"], 2, "--num-parallel 0"),
    ],
)
def test_mistakes_get_one_message_and_their_exit_code(texts, tmp_path, capsys, arguments, exit_code, says):
    (tmp_path / "empty").mkdir()
    assert run(["data", *arguments]) == exit_code
    said = capsys.readouterr()
    assert says in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_fetch_takes_a_data_set_from_the_hub_that_hf_endpoint_names(httpserver, tmp_path):
    data = b'{"text": "x"}\n'
    entry = {"type": "file", "path": "a.jsonl", "size": len(data), "oid": "0" * 40}
    entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    info = {"id": "o/n", "sha": COMMIT, "siblings": [], "private": False, "disabled": False, "tags": []}
    httpserver.expect_request("/api/datasets/o/n/revision/main").respond_with_json(info)
    httpserver.expect_request(f"/api/datasets/o/n/tree/{COMMIT}").respond_with_json([entry])
    httpserver.expect_request(f"/datasets/o/n/resolve/{COMMIT}/a.jsonl").respond_with_data(data)
    # The hub's library reads HF_ENDPOINT when it is imported: a process of its own.
    command = [sys.executable, "-m", "firstlight", "data", "fetch", "hf:o/n", "--json"]
    environment = {**os.environ, "HF_ENDPOINT": httpserver.url_for("").rstrip("/")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_bytes"] == len(data)
    assert found["facts"]["commit"] == COMMIT
    with open(found["shards"][0]["path"], "rb") as file:
        assert file.read() == data
