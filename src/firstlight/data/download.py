"""Download one file so that it is either whole and verified, or not there.

Bytes go to ``NAME.incomplete`` beside the file. A cut connection, a busy server or a killed process leaves that file,
and the next try asks only for what is missing. Length, hash and (for Parquet) the footer are checked before the file
gets its name. Requests go through huggingface_hub's HTTP session: its proxies, its token, its user agent.

That library's own download keeps no partial file between processes and does not compare the hash of what it received,
which is why the transfer is here.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firstlight.data.lock import one_at_a_time
from firstlight.data.sources.base import Progress
from firstlight.data.sources.reading import check_file
from firstlight.data.store import hash_file
from firstlight.errors import DataError

CHUNK_BYTES = 1 << 20
MAX_ATTEMPTS = 6
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
TIMEOUT_S = 30.0
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server and what its publisher says of it.

    url: where it is. name: how messages name it. num_bytes: its size. sha256: hex digest, known for large files.
    git_sha1: git's hash of the blob, known for small ones; used where there is no sha256.
    check: looks at a copy's outside; raises DataError where it is not whole, or not what is read here.
    """

    url: str
    name: str
    num_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    check: Callable[[Path, str], None] = check_file


class _Retry(Exception):
    """A try that failed in a way that a later one may not."""


def problem_with(path: Path, remote: RemoteFile, *, with_hash: bool = True) -> str | None:
    """What is wrong with a local copy of a remote file, in a few words, or None where nothing is.

    Checks presence, size, hash (unless told not to: it reads the whole file) and, for Parquet, the footer and column.
    """
    if not path.is_file():
        return "it is missing"
    num_bytes = path.stat().st_size
    if remote.num_bytes is not None and num_bytes != remote.num_bytes:
        return f"it has {num_bytes:,} bytes, and {remote.num_bytes:,} were published"
    if with_hash and remote.sha256 is not None:
        digest = hash_file(path)
        if digest != remote.sha256:
            return f"its SHA-256 is {digest}, and {remote.sha256} was published"
    elif with_hash and remote.git_sha1 is not None:
        digest = _git_sha1(path)
        if digest != remote.git_sha1:
            return f"its git hash is {digest}, and {remote.git_sha1} was published"
    try:
        remote.check(path, remote.name)
    except DataError as error:
        return error.what
    return None


def download(
    remote: RemoteFile,
    path: Path,
    *,
    progress: Progress | None = None,
    max_attempts: int = MAX_ATTEMPTS,
    first_wait_s: float = FIRST_WAIT_S,
    headers: dict[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Make ``path`` a verified copy of the remote file, and return it. A copy that is there and whole is kept.

    A copy that is damaged is fetched again. Tries that end early are continued, with waits that double, until
    ``max_attempts`` tries in a row brought nothing new. headers: sent along (authorisation). sleep: for tests.
    Raises DataError naming the file where it does not exist, may not be read, or cannot be had whole.
    """
    if problem_with(path, remote) is None:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that want the same file: the second waits, and then finds it there.
        with one_at_a_time(path.with_name(path.name + ".lock"), progress=progress):
            if problem_with(path, remote) is not None:
                _fetch_and_verify(remote, path, progress, max_attempts, first_wait_s, headers or {}, sleep)
    except OSError as error:
        reason = "no space is left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise DataError(
            f"{remote.name} cannot be saved to {path}: {reason}",
            hint="what arrived is kept, and the same command continues from there",
        ) from error
    return path


def _fetch_and_verify(
    remote: RemoteFile,
    path: Path,
    progress: Progress | None,
    max_attempts: int,
    first_wait_s: float,
    headers: dict[str, str],
    sleep: Callable[[float], None],
) -> None:
    partial = path.with_name(path.name + ".incomplete")
    failures_in_a_row = 0
    rejected = 0
    while True:
        had_bytes = partial.stat().st_size if partial.exists() else 0
        try:
            _receive(remote, partial, headers, progress)
            problem = problem_with(partial, remote)
            if problem is None:
                partial.replace(path)
                return
            # Whole in length and wrong in content: nothing of it can be kept. Once may be a bad cable or an old
            # partial file; twice is the server's answer.
            partial.unlink(missing_ok=True)
            rejected += 1
            if rejected >= 2:
                raise DataError(
                    f"{remote.name} arrived damaged {rejected} times: {problem}",
                    hint=f"the server ({remote.url}) gives out another file than it announces; try again later",
                )
            failure = problem
        except _Retry as error:
            failure = str(error)
        now_bytes = partial.stat().st_size if partial.exists() else 0
        failures_in_a_row = 1 if now_bytes > had_bytes else failures_in_a_row + 1
        if failures_in_a_row >= max_attempts:
            raise DataError(
                f"{remote.name} could not be downloaded: {failure} ({max_attempts} tries, {now_bytes:,} bytes so far)",
                hint="check the connection; the same command continues where this one ended",
            )
        sleep(min(LONGEST_WAIT_S, first_wait_s * 2 ** (failures_in_a_row - 1)))


def _receive(remote: RemoteFile, partial: Path, headers: dict[str, str], progress: Progress | None) -> None:
    """Append to the partial file what is missing of it. Raises _Retry where the end was not reached."""
    import httpx2
    from huggingface_hub.utils import get_session

    have = partial.stat().st_size if partial.exists() else 0
    if remote.num_bytes is not None and have > remote.num_bytes:
        partial.unlink()
        have = 0
    if remote.num_bytes is not None and have == remote.num_bytes and have > 0:
        return
    # Bytes as they are stored: a length or a range of compressed bytes would say nothing about the file.
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
    try:
        with get_session().stream(
            "GET", remote.url, headers=asked, timeout=TIMEOUT_S, follow_redirects=True
        ) as response:
            _raise_for_status(response.status_code, remote)
            if response.status_code == 416:
                partial.unlink(missing_ok=True)
                raise _Retry("the server had nothing after what was there already")
            resumes = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            if have and not resumes:
                have = 0
            with partial.open("ab" if have else "wb") as file:
                # Pieces as they come: a chunk size here would collect, and lose what it holds when the line breaks.
                for chunk in response.iter_raw():
                    file.write(chunk)
                    have += len(chunk)
                    if progress is not None:
                        progress(remote.name, have, remote.num_bytes)
            announced = response.headers.get("Content-Length")
            received = response.num_bytes_downloaded
    except httpx2.TransportError as error:
        raise _Retry(f"{type(error).__name__}: {error}") from error
    if announced is not None and int(announced) != received:
        raise _Retry(f"the connection ended after {received:,} of {int(announced):,} bytes")
    if remote.num_bytes is not None and have < remote.num_bytes:
        raise _Retry(f"the server ended the file at {have:,} of {remote.num_bytes:,} bytes")


def _raise_for_status(status: int, remote: RemoteFile) -> None:
    if status in (200, 206, 416):
        return
    if status in RETRY_STATUS:
        raise _Retry(f"the server answered {status}")
    if status == 404:
        raise DataError(f"{remote.name} does not exist: {remote.url} answers 404", hint="check the name and revision")
    if status in (401, 403):
        raise DataError(
            f"{remote.name} may not be read: {remote.url} answers {status}",
            hint="accept the data set's terms on its page, then log in with `hf auth login` or set HF_TOKEN",
        )
    raise DataError(f"{remote.name} could not be downloaded: {remote.url} answers {status}")


def _git_sha1(path: Path) -> str:
    """Git's name for a blob: SHA-1 over ``blob <size>``, a zero byte, and the content (git's documentation of objects)."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
