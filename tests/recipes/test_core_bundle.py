"""The bundle of tasks for all processes: fetched once, unpacked safely, and a failure told to all."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_core import make_bundle

from firstlight.data.download import RemoteFile
from firstlight.errors import ConfigError, DataError
from firstlight.eval.core.bundle import read_bundle
from firstlight.recipes.core_bundle import obtain_bundle, unpack
from firstlight.runtime.channel import Channel


def make_zip(tmp_path: Path, *, top: str = "eval_bundle/") -> Path:
    folder = make_bundle(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, top + path.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/x", "not needed")
    return tmp_path / "made.zip"


class Server:
    def __init__(self, content: bytes) -> None:
        self.content, self.num = content, 0

    def __call__(self, remote: RemoteFile, path: Path) -> Path:
        assert remote.url.endswith("/eval_bundle.zip")
        self.num += 1
        path.write_bytes(self.content)
        return path


def test_it_is_fetched_once_and_is_what_was_packed(tmp_path: Path):
    server = Server(make_zip(tmp_path).read_bytes())
    cache = tmp_path / "cache"
    first = obtain_bundle(None, control=Channel(), cache_dir=cache, fetch=server)
    second = obtain_bundle(None, control=Channel(), cache_dir=cache, fetch=server)
    assert server.num == 1
    assert first.content_hash == second.content_hash == read_bundle(tmp_path / "source").content_hash
    assert sorted(p.name for p in cache.iterdir() if p.is_dir()) == ["eval_bundle"]
    assert not (cache / "eval_bundle/__MACOSX").exists()


def test_an_archive_without_a_top_folder_will_do(tmp_path: Path):
    unpack(make_zip(tmp_path, top=""), tmp_path / "out")
    assert len(read_bundle(tmp_path / "out").tasks) == 3


def test_a_damaged_archive_is_deleted_and_leaves_nothing(tmp_path: Path):
    data = bytearray(make_zip(tmp_path).read_bytes())
    data[len(data) // 3] ^= 255
    for content in (bytes(data), bytes(data[: len(data) // 2])):
        with pytest.raises(DataError, match="damaged"):
            obtain_bundle(None, control=Channel(), cache_dir=tmp_path / "cache", fetch=Server(content))
        assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_damage_inside_packed_data_and_a_password_are_damage_too(tmp_path: Path):
    data = bytearray(make_zip(tmp_path).read_bytes())
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        at = next(entry for entry in archive.infolist() if entry.filename.endswith("core.yaml")).header_offset
    packed = bytearray(data)
    # Its first block gets the type that does not exist: zlib refuses it before a checksum is reached.
    packed[
        at + 30 + int.from_bytes(data[at + 26 : at + 28], "little") + int.from_bytes(data[at + 28 : at + 30], "little")
    ] |= 7
    locked = bytearray(data)
    at = locked.find(b"PK\x01\x02")
    while at >= 0:
        locked[at + 8] |= 1
        at = locked.find(b"PK\x01\x02", at + 4)
    for content in (packed, locked):
        (tmp_path / "made.zip").write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            unpack(tmp_path / "made.zip", tmp_path / "out")
        assert not (tmp_path / "made.zip").exists()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "eval_bundle/../../evil", "/evil", "eval_bundle\\..\\..\\evil", "C:/evil"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str):
    archive = make_zip(tmp_path)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "x")
    with pytest.raises(DataError, match="leaves its folder"):
        unpack(archive, tmp_path / "deep/out")
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "deep/out").exists()


def test_a_link_is_refused(tmp_path: Path):
    archive = make_zip(tmp_path)
    entry = zipfile.ZipInfo("eval_bundle/eval_data/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        unpack(archive, tmp_path / "out")


def test_a_folder_that_is_not_there_and_one_that_is_no_bundle(tmp_path: Path):
    with pytest.raises(ConfigError, match="--bundle"):
        obtain_bundle(tmp_path / "nowhere", control=Channel(), cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"core\.yaml"):
        obtain_bundle(tmp_path, control=Channel(), cache_dir=tmp_path)


def fetch_on_rank(runtime, cache: str, content: bytes) -> tuple[str, str]:
    def fetch(remote: RemoteFile, path: Path) -> Path:
        if runtime.rank == 1:
            raise DataError("the bundle could not be downloaded: no route to host", hint="check the connection")
        path.write_bytes(content)
        return path

    folder = Path(cache) / str(runtime.rank)
    try:
        obtain_bundle(None, control=runtime.control, cache_dir=folder, fetch=fetch)
    except DataError as error:
        return error.what, error.hint
    return "", ""


def test_a_failed_download_on_one_process_is_told_to_the_others(tmp_path: Path):
    first, second = run_ranks(fetch_on_rank, 2, str(tmp_path / "cache"), make_zip(tmp_path).read_bytes())
    assert first[0] == "rank 1: the bundle could not be downloaded: no route to host"
    assert second[0] == "the bundle could not be downloaded: no route to host"
    assert "--bundle DIR" in first[1]
    assert "--bundle DIR" in second[1]


def different_bundles(runtime, paths: list[str]) -> str:
    try:
        obtain_bundle(Path(paths[runtime.rank]), control=runtime.control, cache_dir=Path("."))
    except DataError as error:
        return error.what
    return ""


def test_processes_with_different_bundles_do_not_start(tmp_path: Path):
    paths = [str(make_bundle(tmp_path / "a")), str(make_bundle(tmp_path / "b", num_examples=3))]
    assert all(what.startswith("rank 1 has another bundle") for what in run_ranks(different_bundles, 2, paths))
