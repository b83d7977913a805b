"""The worker process: one JSON line in, one out; it ends with its parent and stays light."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstlight.data.build import prepare_store
from firstlight.data.store import TokenStore


def test_jobs_are_answered_one_by_one_and_a_bad_file_does_not_end_the_worker(three_files, byte_tokenizer, tmp_path):
    directory = prepare_store(three_files, byte_tokenizer, cache_dir=tmp_path / "cache")
    worker = subprocess.Popen(
        [sys.executable, "-m", "firstlight.data.build_worker", str(directory / "tokenizer.json"), str(directory), "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def ask(index: int, path: Path) -> dict:
        worker.stdin.write(json.dumps({"index": index, "name": path.name, "path": str(path)}) + "\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())

    assert ask(0, three_files.shards[0].path) == {"index": 0}
    assert "nowhere.jsonl" in ask(1, tmp_path / "nowhere.jsonl")["what"]
    assert ask(2, three_files.shards[2].path) == {"index": 2}
    worker.communicate()
    assert worker.returncode == 0
    store = TokenStore.open(directory)
    assert [store.is_built(i) for i in range(3)] == [True, False, True]


PARENT = """
import sys, time
from pathlib import Path
from firstlight.data.build import start_build
from firstlight.data.sources.directory import open_directory
from firstlight.tokens.bpe import Tokenizer
store = start_build(open_directory(Path(sys.argv[1])), Tokenizer([bytes([b]) for b in range(256)]),
                    cache_dir=Path(sys.argv[2]), num_workers=1)
store.shard(0)
print(store._builder._workers[0].pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks the worker up in /proc")
def test_a_worker_does_not_outlive_a_killed_parent(make_source, tmp_path):
    source = make_source([["x" * 100], ["some words " * 3_000_000]])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(source.shards[0].path.parent), str(tmp_path / "c")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline, "the worker still runs"
        time.sleep(0.05)
    parent.stdout.close()


def test_a_worker_never_imports_torch():
    code = "import sys, firstlight.data.build_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
