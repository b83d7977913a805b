"""Hub data sets against a stub of the hub on this machine: names, presets, pinned validation, verified files."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstlight.data.sources.base import ReadCounts
from firstlight.data.sources.hub import HubData, open_hub, parse_hub_name
from firstlight.data.sources.reading import read_documents
from firstlight.errors import ConfigError, DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def parquet_bytes(texts):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


class Hub:
    """Serves data sets the way the hub does: info, tree with large-file hashes, and files by commit."""

    def __init__(self, server):
        self.server = server
        self.endpoint = server.url_for("").rstrip("/")

    def add(self, repo, files, *, revision="main", small=(), missing=()):
        tree = []
        for path, data in files.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if path not in small:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            tree.append(entry)
            if path not in missing:
                self.server.expect_request(f"/datasets/{repo}/resolve/{COMMIT}/{path}").respond_with_data(data)
        info = {"id": repo, "sha": COMMIT, "siblings": [], "private": False, "disabled": False, "tags": []}
        self.server.expect_request(f"/api/datasets/{repo}/revision/{revision}").respond_with_json(info)
        self.server.expect_request(f"/api/datasets/{repo}/tree/{COMMIT}").respond_with_json(tree)

    def num_requests(self):
        return len(self.server.log)


def git_sha1(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(httpserver):
    return Hub(httpserver)


def names(source):
    return [shard.name for shard in source.shards]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:a/b", HubData("hf:a/b", "a/b")),
        ("hf:a/b:4", HubData("hf:a/b:4", "a/b", num_shards=4)),
        ("hf:a/b@v1.0:data/en:4", HubData("hf:a/b@v1.0:data/en:4", "a/b", "v1.0", "data/en", 4)),
        ("hf:a/b@refs/convert/parquet", HubData("hf:a/b@refs/convert/parquet", "a/b", "refs/convert/parquet")),
        ("hf:a/b:sample/10BT", HubData("hf:a/b:sample/10BT", "a/b", folder="sample/10BT")),
        ("tinystories", HubData("tinystories", "roneneldan/TinyStories", folder="data")),
        (
            "fineweb-edu:20",
            HubData("fineweb-edu:20", "karpathy/fineweb-edu-100b-shuffle", "main", "", 20, "shard_01822.parquet"),
        ),
        ("climbmix", HubData("climbmix", "karpathy/climbmix-400b-shuffle", "main", "", 8, "shard_06542.parquet")),
        ("builtin", None),
        ("./tinystories", None),
        ("C:\\texts", None),
    ],
)
def test_names(text, expected):
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize(
    "text", ["hf:", "hf:owner", "hf:a/b:c:d", "climbmix:0", "climbmix:x", "tinystories:", "hf:a/b:0"]
)
def test_names_that_go_wrong_are_refused_by_name(text):
    with pytest.raises(ConfigError) as caught:
        parse_hub_name(text)
    assert text in caught.value.what


def shuffled_set(num_shards):
    return {f"shard_{i:05d}.parquet": parquet_bytes([f"text {i}"]) for i in range(num_shards)} | {"README.md": b"x"}


def test_n_training_shards_and_the_pinned_validation_shard_whatever_n_is(hub, tmp_path):
    # The validation set must not change with the number of shards that are there.
    hub.add("a/b", shuffled_set(12))
    for num_shards in (1, 3, 11):
        data = HubData("set", "a/b", num_shards=num_shards, val_shard="shard_00011.parquet")
        source = open_hub(data, cache_dir=tmp_path, endpoint=hub.endpoint)
        assert names(source) == [f"shard_{i:05d}.parquet" for i in range(num_shards)] + ["shard_00011.parquet"]
        assert source.val_shard == "shard_00011.parquet"
    assert source.facts == {"hub": "a/b", "revision": "main", "commit": COMMIT}


def test_more_shards_than_there_are_is_refused_with_the_most(hub, tmp_path):
    hub.add("a/b", shuffled_set(3))
    data = HubData("set:3", "a/b", num_shards=3, val_shard="shard_00002.parquet")
    with pytest.raises(ConfigError, match="asks for 3 training shards, and a/b has 2"):
        open_hub(data, cache_dir=tmp_path, endpoint=hub.endpoint)


def test_split_names_decide_what_is_trained_on(hub, tmp_path):
    files = [
        "data/train-00000-of-00002-aa.parquet", "data/train-00001-of-00002-bb.parquet",
        "data/validation-00000-of-00001-cc.parquet", "data/test-00000-of-00001.parquet", "other/train.parquet",
    ]  # fmt: skip
    hub.add("a/b", {name: parquet_bytes([name]) for name in files})
    source = open_hub(HubData("set", "a/b", folder="data"), cache_dir=tmp_path, endpoint=hub.endpoint)
    assert names(source) == files[:3]
    assert source.val_shard == files[2]
    assert source.ignored == (files[3],)


def test_shards_are_fetched_when_asked_for_verified_and_readable(hub, tmp_path):
    hub.add("a/b", shuffled_set(3))
    source = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    assert [shard.path for shard in source.shards] == [None] * 3
    path = source.local_path(source.shards[1])
    assert [text for _, text in read_documents(path, ReadCounts())] == ["text 1"]
    again = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    assert [shard.path for shard in again.shards] == [None, path, None]
    assert again.shards[1].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_fetched_set_needs_no_network(hub, tmp_path, httpserver):
    hub.add("a/b", shuffled_set(2))
    source = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    for shard in source.shards:
        source.local_path(shard)
    before = hub.num_requests()
    again = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    for shard in again.shards:
        again.local_path(shard)
    assert hub.num_requests() == before


def test_a_shard_cut_in_the_cache_is_not_taken_for_fetched(hub, tmp_path):
    hub.add("a/b", shuffled_set(2))
    source = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    path = source.local_path(source.shards[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    assert again.shards[0].path is None
    assert again.local_path(again.shards[0]).read_bytes() == whole


def test_a_shard_that_is_listed_and_missing_is_named(hub, tmp_path):
    hub.add("a/b", shuffled_set(2), missing=("shard_00001.parquet",))
    source = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    hub.server.expect_request(f"/datasets/a/b/resolve/{COMMIT}/shard_00001.parquet").respond_with_data("no", status=404)
    with pytest.raises(DataError, match=r"shard_00001\.parquet does not exist"):
        source.local_path(source.shards[1])


def test_small_files_outside_the_large_file_store_are_verified_too(hub, tmp_path):
    hub.add("a/b", {"one.jsonl": b'{"text": "x"}\n'}, small=("one.jsonl",))
    source = open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    assert source.shards[0].sha256 is None
    path = source.local_path(source.shards[0])
    path.write_bytes(b'{"text": "y"}\n')
    assert source.local_path(source.shards[0]).read_bytes() == b'{"text": "x"}\n'


def test_an_unknown_data_set_is_an_error_that_names_it(hub, tmp_path, httpserver):
    httpserver.expect_request("/api/datasets/a/none/revision/main").respond_with_json(
        {"error": "Repository not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"}
    )
    with pytest.raises(DataError, match="there is no data set a/none on http"):
        open_hub(HubData("hf:a/none", "a/none"), cache_dir=tmp_path, endpoint=hub.endpoint)


def test_an_unknown_revision_is_an_error_that_names_it(hub, tmp_path, httpserver):
    httpserver.expect_request("/api/datasets/a/b/revision/v9").respond_with_json(
        {"error": "Invalid rev id"}, status=404, headers={"X-Error-Code": "RevisionNotFound"}
    )
    with pytest.raises(DataError, match="answers 404 for a/b@v9"):
        open_hub(HubData("hf:a/b@v9", "a/b", "v9"), cache_dir=tmp_path, endpoint=hub.endpoint)


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(DataError, match="cannot be reached") as caught:
        open_hub(HubData("tinystories", "a/b"), cache_dir=tmp_path, endpoint="http://127.0.0.1:9")
    assert "builtin" in caught.value.hint


def test_a_set_without_text_says_what_it_holds(hub, tmp_path):
    hub.add("a/b", {"images/cat.png": b"x"})
    with pytest.raises(DataError, match=r"has no text to read; it holds images/cat\.png"):
        open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)


def test_a_damaged_list_in_the_cache_is_read_from_the_hub_again(hub, tmp_path):
    hub.add("a/b", shuffled_set(2))
    open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint)
    (listing,) = tmp_path.rglob("listing.json")
    listing.write_text(listing.read_text()[:50])
    assert len(open_hub(HubData("set", "a/b"), cache_dir=tmp_path, endpoint=hub.endpoint).shards) == 2
