"""The built-in corpus: found without importing, the same every time, whole or made again."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from firstlight.data.sources import builtin
from firstlight.data.sources.base import ReadCounts
from firstlight.data.sources.reading import read_documents
from firstlight.errors import DataError
from firstlight.runtime import environment

VERSIONS = {"python": "3", "jinja2": "1"}


SMALL = ("jinja2", "mpmath")


@pytest.fixture(scope="module")
def packages():
    return builtin.find_packages(builtin._versions())


@pytest.fixture
def small(monkeypatch, packages):
    """The corpus of two small packages and pydoc's topics, made in this process: the same code in under a second."""
    monkeypatch.setattr(builtin, "find_packages", lambda versions: [p for p in packages if p.name in SMALL])
    monkeypatch.setattr(environment, "num_usable_cpus", lambda: 1)


def texts(source):
    return [text for shard in source.shards for _, text in read_documents(source.local_path(shard), ReadCounts())]


def test_packages_are_found_without_importing_them():
    code = (
        "from firstlight.data.sources import builtin; import sys; found = builtin.find_packages(builtin._versions());"
        "print([p.name for p in found], [n for n in ('torch', 'numpy', 'sympy', 'networkx') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names, imported = run.stdout.strip().split("] [")
    assert imported == "]", run.stderr
    assert names.startswith("['stdlib', 'numpy', 'torch'")


def test_tests_and_other_peoples_packages_are_not_read(packages):
    for package in packages:
        for path in package.files:
            assert not {"test", "tests", "site-packages", "_vendor"} & set(path.relative_to(package.root).parts[:-1])


def test_equal_texts_and_near_copies_are_left_out_and_counted():
    shared = "A paragraph of some length that two functions have in common, because somebody copied it over. " * 2
    original = f"First words.\n\n{shared}"
    kept, counts = builtin.without_copies(
        [
            original,
            original.replace(" ", "\n", 1),
            f"Other first words.\n\n{shared}",
            f"{'Quite another text. ' * 20}\n\n{shared}",
        ]
    )
    assert kept == [original, f"{'Quite another text. ' * 20}\n\n{shared}"]
    assert counts == {"left_out_same_text": 1, "left_out_near_copy": 1}


def test_the_same_versions_give_the_same_bytes(small, tmp_path):
    first = builtin.open_builtin(cache_dir=tmp_path / "one")
    second = builtin.open_builtin(cache_dir=tmp_path / "two")
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in second.shards]
    assert first.facts == second.facts
    assert first.facts["python"] == sys.version.split()[0]
    assert len(first.shards) == 6
    assert first.val_shard is None
    manifest = builtin.read_manifest(first)
    assert manifest["documents"] == len(texts(first)) == len(set(texts(first)))
    assert manifest["counts"]["left_out_not_prose"] > 0
    assert not list((tmp_path / "one").glob(".builtin*"))


def test_the_corpus_is_made_once(small, tmp_path, monkeypatch):
    first = builtin.open_builtin(cache_dir=tmp_path)
    monkeypatch.setattr(builtin, "_build", None)
    assert builtin.open_builtin(cache_dir=tmp_path) == first


def test_a_damaged_corpus_is_made_again(small, tmp_path):
    source = builtin.open_builtin(cache_dir=tmp_path)
    path = source.local_path(source.shards[2])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = builtin.open_builtin(cache_dir=tmp_path)
    assert again.local_path(again.shards[2]).read_bytes() == whole


def test_another_version_gets_a_corpus_of_its_own(small, tmp_path, monkeypatch):
    first = builtin.open_builtin(cache_dir=tmp_path)
    monkeypatch.setattr(builtin, "_versions", lambda: VERSIONS)
    second = builtin.open_builtin(cache_dir=tmp_path)
    assert first.local_path(first.shards[0]).parent != second.local_path(second.shards[0]).parent


def test_too_little_text_is_an_error_with_a_way_out(small, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "MIN_TEXT_BYTES", 10**9)
    with pytest.raises(DataError, match="the built-in corpus has only") as caught:
        builtin.open_builtin(cache_dir=tmp_path)
    assert "--data DIRECTORY" in caught.value.hint
    assert not list(tmp_path.glob("**/*.parquet"))


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written to .*file/cache"):
        builtin.open_builtin(cache_dir=tmp_path / "file" / "cache")


def make_without_lock(cache_dir, ready):
    """One of two processes on a file system that ignores locks: both build, both rename."""
    found = [p for p in builtin.find_packages(builtin._versions()) if p.name in SMALL]
    builtin.find_packages = lambda versions: found
    environment.num_usable_cpus = lambda: 1
    ready.wait()
    builtin._build(cache_dir / "builtin-x", VERSIONS, None)


def test_two_processes_that_build_at_once_leave_one_whole_corpus(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    processes = [context.Process(target=make_without_lock, args=(tmp_path, ready)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["builtin-x"]
    manifest = json.loads((tmp_path / "builtin-x" / "manifest.json").read_text())
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "builtin-x").glob("*.parquet"))
    assert rows == manifest["documents"]


@pytest.mark.slow
def test_the_whole_corpus_has_the_size_and_the_language_that_the_documentation_states(tmp_path):
    source = builtin.open_builtin(cache_dir=tmp_path)
    manifest = builtin.read_manifest(source)
    assert 8e6 < manifest["text_bytes"] < 20e6
    assert 10_000 < manifest["documents"] < 30_000
    words = " ".join(texts(source)).lower().split()
    # "the" is 5 to 7 % of written English (Brown corpus: 6.9 %); docstrings stay near it, code does not.
    assert 0.045 < words.count("the") / len(words) < 0.09
    assert sum(">>>" in text for text in texts(source)) < 0.005 * manifest["documents"]
