"""A download is whole and verified, or it is not there. All against a server on this machine."""

from __future__ import annotations

import hashlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from werkzeug import Request, Response

from firstlight.data.download import RemoteFile, download, problem_with
from firstlight.errors import DataError


class Shard:
    """A Parquet file on the stub server, which serves each request as the next of ``answers`` says, then normally."""

    def __init__(self, server, folder):
        pq.write_table(
            pa.table({"text": [f"document {i * 7919 % 10007}" for i in range(5000)]}), folder / "made.parquet"
        )
        self.data = (folder / "made.parquet").read_bytes()
        self.answers: list = []
        self.ranges: list[str | None] = []
        server.expect_request("/shard.parquet").respond_with_handler(self.answer)
        self.remote = RemoteFile(
            url=server.url_for("/shard.parquet"),
            name="shard.parquet",
            num_bytes=len(self.data),
            sha256=hashlib.sha256(self.data).hexdigest(),
        )
        self.path = folder / "cache" / "shard.parquet"
        self.waits: list[float] = []

    def answer(self, request: Request) -> Response:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.answers and (answer := self.answers.pop(0)) is not None:
            return answer(self, request)
        return self.whole(request)

    def whole(self, request: Request, data: bytes | None = None) -> Response:
        data = self.data if data is None else data
        asked = request.headers.get("Range")
        if asked is None:
            return Response(data)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
        if start >= len(data):
            return Response(status=416)
        return Response(data[start:], 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def get(self, **keywords):
        return download(self.remote, self.path, sleep=self.waits.append, **keywords)

    @property
    def partial(self):
        return self.path.with_name("shard.parquet.incomplete")


@pytest.fixture
def shard(httpserver, tmp_path):
    return Shard(httpserver, tmp_path)


def cut_at(num_bytes):
    """The connection ends early: the length that was announced is not reached."""

    def answer(shard, request):
        response = shard.whole(request)
        body = response.get_data()
        response.set_data(body[:num_bytes])
        response.headers["Content-Length"] = str(len(body))
        return response

    return answer


def status(code):
    return lambda shard, request: Response("busy", code)


def test_a_file_arrives_whole_with_progress_and_leaves_nothing_beside_it(shard):
    seen = []
    assert shard.get(progress=lambda *call: seen.append(call)) == shard.path
    assert shard.path.read_bytes() == shard.data
    assert seen[-1] == ("shard.parquet", len(shard.data), len(shard.data))
    assert not shard.partial.exists()
    assert shard.waits == []


def test_a_whole_file_is_not_asked_for_again(shard):
    shard.get()
    shard.get()
    assert len(shard.ranges) == 1


def test_a_cut_connection_is_continued_where_it_ended(shard):
    shard.answers = [cut_at(1000), cut_at(500)]
    shard.get()
    assert shard.path.read_bytes() == shard.data
    assert shard.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_a_partial_file_of_a_killed_process_is_continued(shard):
    shard.path.parent.mkdir()
    shard.partial.write_bytes(shard.data[:1234])
    shard.get()
    assert shard.path.read_bytes() == shard.data
    assert shard.ranges == ["bytes=1234-"]


def test_a_server_without_ranges_gets_a_fresh_start(shard):
    shard.path.parent.mkdir()
    shard.partial.write_bytes(b"other bytes")
    shard.answers = [lambda shard, request: Response(shard.data)]
    shard.get()
    assert shard.path.read_bytes() == shard.data
    assert shard.ranges == ["bytes=11-"]


def test_a_busy_server_is_asked_again_with_growing_waits(shard):
    shard.answers = [status(503), status(429), status(500)]
    shard.get(first_wait_s=1.0)
    assert shard.path.read_bytes() == shard.data
    assert shard.waits == [1.0, 2.0, 4.0]


def test_it_gives_up_after_so_many_tries_without_a_byte_and_keeps_what_it_has(shard):
    shard.answers = [cut_at(1000), *[status(503)] * 9]
    with pytest.raises(
        DataError, match=r"shard\.parquet could not be downloaded: the server answered 503 .3 tries, 1,000"
    ):
        shard.get(max_attempts=3)
    assert not shard.path.exists()
    assert shard.partial.read_bytes() == shard.data[:1000]


def test_a_file_that_ends_early_without_a_broken_connection_is_noticed(shard):
    shard.answers = [lambda shard, request: Response(shard.data[:-1]), lambda shard, request: Response(status=416)]
    shard.get()
    assert shard.path.read_bytes() == shard.data


def test_too_many_bytes_are_not_taken(shard):
    shard.answers = [lambda shard, request: Response(shard.data + b"more")]
    shard.get()
    assert shard.path.read_bytes() == shard.data


def test_a_wrong_hash_is_fetched_once_more_and_may_be_right_then(shard):
    other = bytes(shard.data[:-40]) + bytes(40)
    shard.answers = [lambda shard, request: Response(other)]
    shard.get()
    assert shard.path.read_bytes() == shard.data
    assert shard.ranges == [None, None]


def test_a_hash_that_stays_wrong_is_an_error_with_both_hashes(shard):
    other = bytes(shard.data[:-40]) + bytes(40)
    shard.answers = [lambda shard, request: Response(other)] * 9
    with pytest.raises(DataError, match="arrived damaged 2 times") as caught:
        shard.get()
    assert hashlib.sha256(other).hexdigest() in caught.value.what
    assert shard.remote.sha256 in caught.value.what
    assert not shard.path.exists()
    assert not shard.partial.exists()


def test_a_missing_shard_is_an_error_at_once_that_names_it(shard):
    shard.answers = [status(404)]
    with pytest.raises(DataError, match=r"shard\.parquet does not exist: http.* answers 404") as caught:
        shard.get()
    assert caught.value.exit_code == 3
    assert shard.waits == []


def test_a_gated_file_says_how_to_log_in(shard):
    shard.answers = [status(403)]
    with pytest.raises(DataError) as caught:
        shard.get()
    assert "HF_TOKEN" in caught.value.hint


def test_a_truncated_file_in_the_cache_is_noticed_and_fetched_again(shard):
    shard.get()
    shard.path.write_bytes(shard.data[: len(shard.data) // 2])
    assert (
        problem_with(shard.path, shard.remote)
        == f"it has {len(shard.data) // 2:,} bytes, and {len(shard.data):,} were published"
    )
    shard.get()
    assert shard.path.read_bytes() == shard.data


def test_a_parquet_file_without_a_published_size_or_hash_is_still_checked_by_its_footer(shard):
    shard.path.parent.mkdir()
    shard.path.write_bytes(shard.data[:-100])
    unknown = RemoteFile(shard.remote.url, "shard.parquet")
    assert "not a whole Parquet file" in problem_with(shard.path, unknown)
    download(unknown, shard.path)
    assert shard.path.read_bytes() == shard.data


def test_small_files_are_verified_by_gits_hash(shard, tmp_path):
    # `printf 'hello\n' | git hash-object --stdin`
    path = tmp_path / "x.txt"
    path.write_bytes(b"hello\n")
    assert problem_with(path, RemoteFile("", "x.txt", 6, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a")) is None
    assert "git hash" in problem_with(path, RemoteFile("", "x.txt", 6, git_sha1="0" * 40))


def test_a_server_that_is_not_there_is_an_error_that_names_the_file(tmp_path):
    remote = RemoteFile("http://127.0.0.1:9/x.parquet", "x.parquet", 10)
    with pytest.raises(DataError, match=r"x\.parquet could not be downloaded: ConnectError"):
        download(remote, tmp_path / "x.parquet", max_attempts=2, sleep=lambda seconds: None)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(shard, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(DataError, match=r"shard\.parquet cannot be saved to .*cache"):
        shard.get()
